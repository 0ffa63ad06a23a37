package capture_test

import (
	"testing"

	"github.com/sendense/sendense/capture/capturetest"
)

func TestTheSourceInMemoryKeepsTheContract(t *testing.T) {
	capturetest.Run(t, func(t *testing.T) capturetest.Machine {
		s := capturetest.NewSource(t, "web1")
		s.Add("vda", 8<<20+4608) // ends inside a cluster
		s.Add("vdb", 1<<20)
		return s.Machine()
	})
}
