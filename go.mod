module github.com/sendense/sendense

go 1.26.0

require libguestfs.org/libnbd v1.20.0

require (
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
)

replace libguestfs.org/libnbd => ./third_party/libnbd
