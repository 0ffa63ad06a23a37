package dir

import "testing"

func TestTheReserveIsNotMadeWhileARemovalUsesIt(t *testing.T) {
	root := t.TempDir()
	open := func() *Repository {
		r, err := Open(root, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
	want := func(when string, size int64) {
		t.Helper()
		if n, err := fileBytes(open().reserve()); err != nil || n != size {
			t.Errorf("reserve %s: got %d bytes (%v), want %d", when, n, err, size)
		}
	}
	a, b := open(), open()
	want("at first", minReserve)
	endA := a.SpendReserve()
	want("while it is used", 0)
	endB := b.SpendReserve()
	endA()
	want("while it is still used by another removal", 0)
	endB()
	want("afterwards", minReserve)

	a.keepReserve(3 * minReserve)
	want("for a large record", 3*minReserve)
	a.SpendReserve()()
	want("for a large record, used once", 3*minReserve)
	b.keepReserve(minReserve)
	want("after a smaller record", 3*minReserve)
}
