package ext4

import (
	"fmt"
	"strings"
)

// Features, as the superblock has them: compatible ones can be ignored, a reader
// can ignore read-only compatible ones as well, incompatible ones never.
const (
	compatHasJournal = 0x4
	compatDirIndex   = 0x20
	compatSparse2    = 0x200

	incompatFileType   = 0x2
	incompatRecover    = 0x4
	incompatJournalDev = 0x8
	incompatMetaBG     = 0x10
	incompatExtents    = 0x40
	incompat64Bit      = 0x80
	incompatMMP        = 0x100
	incompatFlexBG     = 0x200
	incompatEAInode    = 0x400
	incompatCSumSeed   = 0x2000
	incompatLargeDir   = 0x4000
	incompatInlineData = 0x8000
	incompatEncrypt    = 0x10000
	incompatCaseFold   = 0x20000

	incompatKnown = incompatFileType | incompatRecover | incompatMetaBG | incompatExtents | incompat64Bit | incompatMMP |
		incompatFlexBG | incompatEAInode | incompatCSumSeed | incompatLargeDir | incompatInlineData | incompatEncrypt |
		incompatCaseFold

	roSparseSuper  = 0x1
	roLargeFile    = 0x2
	roBTreeDir     = 0x4
	roHugeFile     = 0x8
	roGDTCSum      = 0x10
	roBigAlloc     = 0x200
	roMetadataCSum = 0x400

	// What ext2 and ext3 have, by which blkid tells them from ext4.
	roExt2       = roSparseSuper | roLargeFile | roBTreeDir
	incompatExt2 = incompatFileType | incompatMetaBG
	incompatExt3 = incompatExt2 | incompatRecover
)

// featureNames returns the names of features that incompatKnown lacks.
func featureNames(bits uint32) string {
	var names []string
	for i := range 32 {
		switch bit := uint32(1) << i; bits & bit {
		case 0:
		case 0x1:
			names = append(names, "compression")
		case 0x1000:
			names = append(names, "dirdata")
		default:
			names = append(names, fmt.Sprintf("incompatible feature 0x%x", bit))
		}
	}
	return strings.Join(names, ", ")
}

// Flags of inodes.
const (
	flagEncrypt    = 0x800
	flagIndex      = 0x1000
	flagHugeFile   = 0x40000
	flagExtents    = 0x80000
	flagEAInode    = 0x200000
	flagInlineData = 0x10000000
	flagCaseFold   = 0x40000000
)

// flagNames are those of lsattr, of flags that say something of a file.
var flagNames = []struct {
	bit  uint32
	name string
}{
	{0x4, "compressed"}, {0x8, "sync"}, {0x10, "immutable"}, {0x20, "append"}, {0x40, "nodump"}, {0x80, "noatime"},
	{flagEncrypt, "encrypted"}, {0x4000, "journal-data"}, {0x10000, "dirsync"}, {0x100000, "verity"}, {0x2000000, "dax"},
	{0x20000000, "project-inherit"}, {flagCaseFold, "casefold"},
}
