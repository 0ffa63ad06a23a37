package dir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sendense/sendense/internal/repository"
)

// draftFormat is the version of draft.json that this program writes.
const draftFormat = 1

// draftRecord is the content of draft.json, which is there while a machine has a
// draft: files of that point are not stored unless metadata.json names them.
type draftRecord struct {
	Format int                `json:"format"`
	Point  repository.PointID `json:"point"`
	Holder string             `json:"holder"`
}

// recoverAll recovers every machine that nobody is writing.
func (r *Repository) recoverAll(ctx context.Context) error {
	folders, err := r.folders()
	if err != nil {
		return err
	}
	for _, v := range folders {
		l, err := r.lockVM(ctx, v, "", "recovery")
		if err != nil {
			r.log.Error("machine not recovered", "vm", v.id, "err", err)
			continue
		}
		if err := l.release(); err != nil {
			return err
		}
	}
	return nil
}

// recover finishes or discards what a writer left behind that died; the caller has
// the writer lock. It removes nothing but what is proved to be in no use: files in
// the making, those of a draft, and what the record calls trash.
func (r *Repository) recover(ctx context.Context, v *vmFolder) error {
	if _, err := os.Stat(v.path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	rec, err := v.load()
	if err != nil {
		return err
	}
	if err := r.discardDraft(v, rec); err != nil {
		return fmt.Errorf("recover VM %s: %w", v.id, err)
	}
	if rec == nil {
		if err := v.sweepNotes(nil); err != nil {
			return fmt.Errorf("recover VM %s: %w", v.id, err)
		}
		return v.removeEmpty()
	}
	if rec.Merge != nil {
		if rec, err = r.resumeMerge(ctx, v, rec); err != nil {
			// All points are readable as they are: no reason to refuse a backup.
			r.log.Error("removal of a point is still not finished", "vm", v.id, "err", err)
			return nil
		}
	}
	if err := v.tidy(rec); err != nil {
		return fmt.Errorf("recover VM %s: %w", v.id, err)
	}
	return nil
}

// tidy removes trash and brings chain.json up to date. A machine without points is
// removed.
func (v *vmFolder) tidy(rec *record) error {
	if len(rec.Trash) > 0 {
		for _, name := range rec.Trash {
			if err := removeFile(v.fs, v.file(name)); err != nil {
				return err
			}
		}
		if err := v.syncDisks(rec); err != nil {
			return err
		}
	}
	if err := v.writeChains(rec); err != nil {
		return err
	}
	if err := v.sweepNotes(rec); err != nil {
		return err
	}
	if len(rec.Points) == 0 {
		return v.removeAll(rec)
	}
	if len(rec.Trash) > 0 {
		clean := rec.clone()
		clean.Trash = nil
		if _, err := v.writeRecord(clean); err != nil {
			return err
		}
		*rec = *clean
	}
	return nil
}

// syncDisks makes the names in the folders of all disks durable.
func (v *vmFolder) syncDisks(rec *record) error {
	for _, d := range rec.Disks {
		err := v.fs.SyncDir(filepath.Join(v.path, diskDir(d.Index)))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeAll removes the folder of a machine without points. The record goes last,
// so that recovery knows whose folder it is.
func (v *vmFolder) removeAll(rec *record) error {
	for _, d := range rec.Disks {
		if err := removeIfEmpty(v.fs, filepath.Join(v.path, diskDir(d.Index))); err != nil {
			return err
		}
	}
	if err := removeFile(v.fs, v.metadata()); err != nil {
		return err
	}
	return v.removeEmpty()
}

// removeIfEmpty removes a folder unless there is something in it.
func removeIfEmpty(f filesystem, path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) > 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return removeFile(f, path)
}

// removeEmpty removes the folder of a machine without a record, as far as there is
// nothing in it.
func (v *vmFolder) removeEmpty() error {
	entries, err := os.ReadDir(v.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || !diskDirs.MatchString(e.Name()) {
			continue
		}
		if err := removeIfEmpty(v.fs, filepath.Join(v.path, e.Name())); err != nil {
			return err
		}
	}
	if err := removeIfEmpty(v.fs, v.path); err != nil {
		return err
	}
	return v.fs.SyncDir(filepath.Dir(v.path))
}

// discardDraft removes what is left of a draft that was not committed.
func (r *Repository) discardDraft(v *vmFolder, rec *record) error {
	draft, err := v.loadDraft()
	if err != nil {
		// It proves nothing, so it is no reason to remove anything but itself.
		r.log.Error("record of a draft is damaged", "vm", v.id, "err", err)
	}
	var point repository.PointID
	if draft != nil && (rec == nil || rec.point(draft.Point) == nil) {
		point = draft.Point
	}
	n, err := v.removeDraft(point)
	if err != nil {
		return err
	}
	if n > 0 {
		r.log.Info("draft discarded", "vm", v.id, "point", point, "files", n)
	}
	return nil
}

// loadDraft reads draft.json; nil if there is none.
func (v *vmFolder) loadDraft() (*draftRecord, error) {
	b, err := readBounded(filepath.Join(v.path, draftName), 64<<10)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var d draftRecord
	if err := unseal(b, draftFormat, &d, &d.Format); err != nil {
		return nil, err
	}
	if _, err := repository.ParsePointID(string(d.Point)); err != nil {
		return nil, err
	}
	return &d, nil
}

// removeDraft removes all files in the making, those of a point that was not
// committed, and last draft.json. It returns how many it removed.
func (v *vmFolder) removeDraft(point repository.PointID) (n int, err error) {
	dirs, err := v.leftovers(point)
	if err != nil {
		return 0, err
	}
	for _, d := range dirs {
		for _, name := range d.names {
			if err := removeFile(v.fs, filepath.Join(d.path, name)); err != nil {
				return n, err
			}
			n++
		}
		if len(d.names) > 0 {
			if err := v.fs.SyncDir(d.path); err != nil {
				return n, err
			}
		}
		if d.path != v.path {
			if err := removeIfEmpty(v.fs, d.path); err != nil {
				return n, err
			}
		}
	}
	draft := filepath.Join(v.path, draftName)
	if _, err := os.Lstat(draft); err != nil {
		return n, nil
	}
	if err := removeFile(v.fs, draft); err != nil {
		return n, err
	}
	return n, v.fs.SyncDir(v.path)
}

// leftover is a folder and names in it.
type leftover struct {
	path  string
	names []string
}

// leftovers finds files in the making and those of a point, if it is not "".
func (v *vmFolder) leftovers(point repository.PointID) ([]leftover, error) {
	own := leftover{path: v.path}
	var list []leftover
	entries, err := os.ReadDir(v.path)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Name() == metadataName+partialSuffix || e.Name() == draftName+partialSuffix {
			own.names = append(own.names, e.Name())
		}
		if !e.IsDir() || !diskDirs.MatchString(e.Name()) {
			continue
		}
		d := leftover{path: filepath.Join(v.path, e.Name())}
		files, err := os.ReadDir(d.path)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			p, ok := parsePointFile(f.Name())
			scratch := strings.HasPrefix(f.Name(), ".digests-") && strings.HasSuffix(f.Name(), partialSuffix)
			if ok && (p.partial || p.point == point) || scratch || f.Name() == chainName+partialSuffix {
				d.names = append(d.names, f.Name())
			}
		}
		list = append(list, d)
	}
	return append(list, own), nil
}
