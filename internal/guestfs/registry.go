package guestfs

import (
	"context"

	"github.com/sendense/sendense/internal/guestfs/hive"
	"github.com/sendense/sendense/internal/guestfs/proto"
)

// RegistryValue is a value of the registry of Windows.
type RegistryValue = hive.Value

// SystemHive and SoftwareHive are where Windows keeps these, from the root of its own
// tree.
const (
	SystemHive   = "/Windows/System32/config/SYSTEM"
	SoftwareHive = "/Windows/System32/config/SOFTWARE"
)

// RegistryValue returns a value of the hive in a file, whose path is as in Resolve: of
// the key at a path with backslashes from the hive's root, by name. In the hive SYSTEM,
// CurrentControlSet stands for the set in use. It returns fs.ErrNotExist where there is
// no such file, key or value. What a driver does at the start of the machine says
//
//	g.RegistryValue(ctx, guestfs.SystemHive, `CurrentControlSet\Services\viostor`, "Start")
func (g *Guest) RegistryValue(ctx context.Context, file, key, name string) (RegistryValue, error) {
	r, err := g.call(ctx, proto.Request{Op: proto.Registry, Path: file, Key: key, Name: name})
	if err == nil && len(r.Data) > hive.MaxValue {
		err = errProtocol
	}
	if err != nil {
		return RegistryValue{}, err
	}
	return RegistryValue{Name: r.Path, Type: r.Kind, Data: r.Data}, nil
}

// RegistryKeys returns the names of the keys below one, as RegistryValue finds it.
func (g *Guest) RegistryKeys(ctx context.Context, file, key string) ([]string, error) {
	r, err := g.call(ctx, proto.Request{Op: proto.RegistryKeys, Path: file, Key: key})
	return r.Names, err
}
