package repository_test

import (
	"testing"

	"github.com/sendense/sendense/internal/repository"
)

func TestAProblemIsALineForPeople(t *testing.T) {
	const vm = repository.VMID("11111111-2222-3333-4444-555555555555")
	for _, tt := range []struct {
		name string
		p    repository.Problem
		want string
	}{
		{"of a cluster", repository.Problem{VM: vm, Name: "web1", Point: "20251002-120000", Disk: "vda", Cluster: 5, Off: 327680, What: "it is gone"},
			"VM 11111111-2222-3333-4444-555555555555 (web1), point 20251002-120000, disk vda, cluster 5 (offset 327680): it is gone"},
		{"of a file", repository.Problem{VM: vm, Name: "web1", Point: "20251002-120000", Disk: "vda", Cluster: -1, Off: -1, What: "it is cut off"},
			"VM 11111111-2222-3333-4444-555555555555 (web1), point 20251002-120000, disk vda: it is cut off"},
		{"of a VM whose name nobody knows", repository.Problem{VM: vm, Cluster: -1, Off: -1, What: "its record is damaged"},
			"VM 11111111-2222-3333-4444-555555555555: its record is damaged"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.p.String(); got != tt.want {
				t.Errorf("line: got %q, want %q", got, tt.want)
			}
		})
	}
}
