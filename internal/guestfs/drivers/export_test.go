package drivers

// ReadInitramfs is readInitramfs.
var ReadInitramfs = readInitramfs

// CompareVersions is compareVersions.
var CompareVersions = compareVersions
