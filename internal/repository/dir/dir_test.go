package dir_test

import (
	"testing"

	"github.com/sendense/sendense/internal/repository"
	"github.com/sendense/sendense/internal/repository/dir"
	"github.com/sendense/sendense/internal/repository/repositorytest"
)

// subject opens an empty repository.
func subject(t *testing.T, o dir.Options) (repositorytest.Subject, string) {
	t.Helper()
	root := t.TempDir()
	var r *dir.Repository
	reopen := func() repository.Repository {
		if r != nil {
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if r, err = dir.Open(root, o); err != nil {
			t.Fatal(err)
		}
		return r
	}
	s := repositorytest.Subject{Repository: reopen(), Reopen: reopen}
	t.Cleanup(func() { r.Close() })
	return s, root
}

func TestRepository(t *testing.T) {
	repositorytest.Run(t, func(t *testing.T) repositorytest.Subject {
		s, _ := subject(t, dir.Options{})
		return s
	})
}
