package dir

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/sendense/sendense/block"
	"github.com/sendense/sendense/image"
	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/repositorytest"
)

// Variables by which a test starts itself as another process.
const (
	envRoot = "SENDENSE_TEST_ROOT" // of the repository to work on
	envSeed = "SENDENSE_TEST_SEED"
	envHold = "SENDENSE_TEST_HOLD" // begin a draft and wait
	// envKills is how often TestRepositorySurvivesKill kills; default 10.
	envKills = "SENDENSE_TEST_KILLS"
)

func TestMain(m *testing.M) {
	if root := os.Getenv(envRoot); root != "" {
		if err := helper(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// helper is the other process.
func helper(root string) error {
	ctx := context.Background()
	r, err := Open(root, Options{})
	if err != nil {
		return err
	}
	if os.Getenv(envHold) != "" {
		_, err := r.Begin(ctx, repository.BeginOptions{VM: repositorytest.Web, Name: "web1", Holder: "backup-web1-20251002120000"})
		fmt.Println("ready")
		time.Sleep(time.Minute) // or until killed
		return err
	}
	seed, err := strconv.ParseUint(os.Getenv(envSeed), 10, 64)
	if err != nil {
		return err
	}
	rnd := rand.New(rand.NewPCG(seed, 1))
	fmt.Println("ready")
	for {
		if err := step(ctx, r, rnd); err != nil {
			return err
		}
	}
}

// step adds a point, whose configuration tells the digests of its disks, or deletes
// some.
func step(ctx context.Context, r *Repository, rnd *rand.Rand) error {
	points, err := r.Points(ctx, repositorytest.Web)
	if err != nil && !errors.Is(err, repository.ErrNoVM) {
		return err
	}
	if len(points) > 3 && rnd.IntN(3) > 0 {
		i := rnd.IntN(len(points))
		ids := []repository.PointID{points[i].ID}
		if k := rnd.IntN(len(points)); k != i && rnd.IntN(2) == 0 {
			ids = append(ids, points[k].ID)
		}
		return r.Delete(ctx, repositorytest.Web, ids...)
	}
	d, err := r.Begin(ctx, repository.BeginOptions{VM: repositorytest.Web, Name: "web", ClusterSize: 4096, Compress: []string{"", "zstd"}[rnd.IntN(2)]})
	if err != nil {
		return err
	}
	sums := map[string]string{}
	for _, key := range []string{"vda", "vdb"} {
		x, err := d.AddDisk(ctx, key, 400<<10)
		if err != nil {
			return err
		}
		for range 8 {
			p := make([]byte, 1+rnd.IntN(40<<10))
			for i := range p {
				p[i] = byte(rnd.Uint32() >> (rnd.IntN(2) * 28))
			}
			if err := block.Write(ctx, x.Device(), p, rnd.Int64N(400<<10-int64(len(p)))); err != nil {
				return err
			}
		}
		b := make([]byte, 400<<10)
		if err := x.Device().ReadAt(ctx, b, 0); err != nil {
			return err
		}
		sums[key] = hexSum(image.Sum(b))
	}
	config, err := json.Marshal(sums)
	if err != nil {
		return err
	}
	_, err = d.Commit(ctx, repository.PointInfo{Config: config})
	return err
}

// other starts the helper and waits until it is at work.
func other(t *testing.T, env ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("other process: got %q (%v)", line, err)
	}
	return cmd
}

// checkSums compares each point with what its configuration says.
func checkSums(t *testing.T, r *Repository) {
	t.Helper()
	ctx := context.Background()
	points, err := r.Points(ctx, repositorytest.Web)
	if err != nil && !errors.Is(err, repository.ErrNoVM) {
		t.Fatal(err)
	}
	for _, p := range points {
		var sums map[string]string
		if err := json.Unmarshal(p.Config, &sums); err != nil {
			t.Fatal(err)
		}
		for _, x := range p.Disks {
			d, err := r.OpenDisk(ctx, p.VM, p.ID, x.Index, repository.OpenOptions{Verified: true})
			if err != nil {
				t.Fatal(err)
			}
			b := make([]byte, d.Size())
			if err := d.ReadAt(ctx, b, 0); err != nil || hexSum(image.Sum(b)) != sums[x.Key] {
				t.Errorf("disk %s of %s: got other bytes than committed (%v)", x.Key, p.ID, err)
			}
			d.Close()
		}
	}
	report, err := r.Verify(ctx, repository.VerifyOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range report.Problems {
		t.Errorf("verify: got problem: %v", p)
	}
}

func TestRepositorySurvivesKill(t *testing.T) {
	kills := 10
	if n, err := strconv.Atoi(os.Getenv(envKills)); err == nil {
		kills = n
	}
	root := t.TempDir()
	for i := range kills {
		cmd := other(t, envRoot+"="+root, fmt.Sprint(envSeed, "=", i))
		time.Sleep(time.Duration(rand.IntN(250)) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		reader, err := Open(root, Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		checkSums(t, reader)
		sole, err := Open(root, Options{Exclusive: true})
		if err != nil {
			t.Fatal(err)
		}
		checkSums(t, sole)
		if err := sole.Close(); err != nil {
			t.Fatal(err)
		}
		noLeftovers(t, root)
		if t.Failed() {
			t.Fatalf("after kill %d", i+1)
		}
	}
}

func TestLockNamesTheOtherProcessAndDiesWithIt(t *testing.T) {
	root := t.TempDir()
	cmd := other(t, envRoot+"="+root, envHold+"=1")
	r, err := Open(root, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o := repository.BeginOptions{VM: repositorytest.Web, Name: "web1"}
	_, err = r.Begin(t.Context(), o)
	want := fmt.Sprintf("begin point of VM web1: VM web1 is being written by backup-web1-20251002120000 (pid %d)", cmd.Process.Pid)
	if !errors.Is(err, repository.ErrLocked) || err.Error() != want {
		t.Errorf("begin: got %v, want %s", err, want)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	d, err := r.Begin(t.Context(), o)
	if err != nil {
		t.Fatalf("begin after the other was killed: %v", err)
	}
	if err := d.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	noLeftovers(t, root)
}
