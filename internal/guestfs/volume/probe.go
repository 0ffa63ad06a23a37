package volume

import (
	"slices"
)

// finding is something that a volume holds, or seems to.
type finding struct {
	Type, Label, UUID string
	at                int64  // where what it was told by begins
	end               int64  // where it ends, of a disc that may hold partitions; else 0
	refusal           string // why what it holds cannot be read here

	// What members of something larger, and containers, have to be told by.
	pv   *pvLabel
	md   *mdSuper
	luks *luksHeader
	span *Span
}

// container says whether the volume's bytes belong to something else: an array, a
// group, a pool, a container of encryption.
func (f finding) container() bool {
	return f.refusal != "" || f.pv != nil || f.md != nil || f.luks != nil
}

// disc says whether it is the file system of an optical disc.
func (f finding) disc() bool { return f.Type == "iso9660" || f.Type == "udf" }

// probes recognise what a volume holds. What comes first counts if several do: what
// a volume is a member of says more than what was left in it.
var probes = []func(*window) (finding, bool){
	probeRaid, probeDDF, probeIntel, probeLVM2, probeLVM1, probeLUKS, probeBitLocker, probeBcache, probeStratis, probeVMFS,
	probeFAT, probeNTFS, probeExFAT, probeReFS, probeSwap, probeXFS, probeExt, probeBtrfs, probeF2FS, probeReiser, probeJFS,
	probeNILFS, probeAPFS, probeHFS, probeUDF, probeISO, probeEROFS, probeByMagic, probeUFS, probeZFS,
}

// probe returns everything that is recognised in a volume.
func probe(w *window) []finding {
	var found []finding
	for _, p := range probes {
		if f, ok := p(w); ok {
			found = append(found, f)
		}
	}
	return found
}

// magic is a number that tells what has no label to look for.
type magic struct {
	at      int64
	text    string
	typ     string
	refusal string
}

// magics are looked for in this order.
var magics = []magic{
	{0, "hsqs", "squashfs", ""},
	{0, "\x45\x3d\xcd\x28", "cramfs", ""},
	{0, "\x28\xcd\x3d\x45", "cramfs", ""},
	{0, "-rom1fs-", "romfs", ""},
	{1024, "OCFSV2", "ocfs2", ""}, {2048, "OCFSV2", "ocfs2", ""}, {4096, "OCFSV2", "ocfs2", ""},
	{64 << 10, "\x01\x16\x19\x70", "gfs2", ""},
	{0, "SnAp", "DM_snapshot_cow", ""},
	{0, "verity\x00\x00", "DM_verity_hash", ""},
	{0, "integrt\x00", "DM_integrity", "It is a volume of dm-integrity, which is not read."},
	{0, "dmvdo001", "vdo", "It is a volume of VDO (deduplicated and compressed), which is not read."},
	{0, "bluestore block device", "ceph_bluestore", "It belongs to a Ceph cluster, which is not read."},
	{32, "ORCLDISK", "oracleasm", "It belongs to an Oracle ASM disk group, which is not read."},
}

func probeByMagic(w *window) (finding, bool) {
	i := slices.IndexFunc(magics, func(m magic) bool { return w.has(m.at, m.text) })
	if i < 0 {
		return finding{}, false
	}
	return finding{Type: magics[i].typ, at: magics[i].at, refusal: magics[i].refusal}, true
}
