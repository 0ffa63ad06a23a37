package appliance

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/nbdserver"
)

// Metrics counts what an appliance does. Units are base units, labels are of
// small, fixed sets: no machine, point or job is one.
type Metrics struct {
	jobs        *prometheus.CounterVec
	jobSeconds  *prometheus.HistogramVec
	requests    *prometheus.CounterVec
	bytes       *prometheus.CounterVec
	clients     *prometheus.GaugeVec
	sampled     prometheus.Counter
	missed      prometheus.Counter
	verifiedAll prometheus.Counter
	problems    prometheus.Counter
}

// NewMetrics returns metrics that are registered with r, or nowhere if it is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		jobs: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sendense_jobs_total",
			Help: "Jobs that ended, by verb and final state."}, []string{"verb", "state"}),
		jobSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "sendense_job_duration_seconds",
			Help: "How long jobs took, by verb.", Buckets: prometheus.ExponentialBuckets(0.1, 4, 10)}, []string{"verb"}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sendense_nbd_requests_total",
			Help: "NBD requests answered, by what is served (draft, export), command and result (ok, error)."}, []string{"role", "command", "result"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sendense_nbd_bytes_total",
			Help: "Bytes that NBD requests answered without error were about, by what is served and command."}, []string{"role", "command"}),
		clients: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sendense_nbd_clients",
			Help: "NBD clients connected, by what is served."}, []string{"role"}),
		sampled: prometheus.NewCounter(prometheus.CounterOpts{Name: "sendense_tracker_audit_sampled_clusters_total",
			Help: "Clusters that change tracking called unchanged and that were read to check it."}),
		missed: prometheus.NewCounter(prometheus.CounterOpts{Name: "sendense_tracker_audit_missed_clusters_total",
			Help: "Of the sampled clusters, those that had changed after all. Anything but 0 means that a source's tracking is broken."}),
		verifiedAll: prometheus.NewCounter(prometheus.CounterOpts{Name: "sendense_verified_bytes_total",
			Help: "Bytes of stored data read and compared with their digests."}),
		problems: prometheus.NewCounter(prometheus.CounterOpts{Name: "sendense_verify_problems_total",
			Help: "Pieces of damage that verification found."}),
	}
	if r != nil {
		r.MustRegister(m.jobs, m.jobSeconds, m.requests, m.bytes, m.clients, m.sampled, m.missed, m.verifiedAll, m.problems)
	}
	return m
}

func (m *Metrics) job(j Job, took time.Duration) {
	m.jobs.WithLabelValues(j.Verb, string(j.State)).Inc()
	m.jobSeconds.WithLabelValues(j.Verb).Observe(took.Seconds())
}

func (m *Metrics) audit(a repository.Audit) {
	m.sampled.Add(float64(a.Sampled))
	m.missed.Add(float64(a.Missed))
}

func (m *Metrics) verified(r *repository.Report) {
	m.verifiedAll.Add(float64(r.Bytes))
	m.problems.Add(float64(int64(len(r.Problems)) + r.Omitted))
}

// observer returns what counts the requests of one NBD server. Counters are
// looked up once, since it is called for each request.
func (m *Metrics) observer(role string) nbdserver.Observer {
	o := &nbdObserver{clients: m.clients.WithLabelValues(role)}
	for c := range o.commands {
		name := nbdserver.Command(c).String()
		o.commands[c] = commandCounters{ok: m.requests.WithLabelValues(role, name, "ok"),
			failed: m.requests.WithLabelValues(role, name, "error"), bytes: m.bytes.WithLabelValues(role, name)}
	}
	return o
}

type commandCounters struct{ ok, failed, bytes prometheus.Counter }

type nbdObserver struct {
	clients  prometheus.Gauge
	commands [nbdserver.CmdBlockStatus + 1]commandCounters
}

func (o *nbdObserver) ConnOpened(string) { o.clients.Inc() }
func (o *nbdObserver) ConnClosed(string) { o.clients.Dec() }

func (o *nbdObserver) RequestDone(_ string, cmd nbdserver.Command, bytes int64, errno nbdserver.Errno) {
	if int(cmd) >= len(o.commands) {
		return
	}
	c := &o.commands[cmd]
	if errno != 0 {
		c.failed.Inc()
		return
	}
	c.ok.Inc()
	c.bytes.Add(float64(bytes))
}
