package iso9660_test

import (
	"testing"

	"github.com/sendense/sendense/internal/guestfs/fstest"
)

func TestMain(m *testing.M) { fstest.Main(m) }
