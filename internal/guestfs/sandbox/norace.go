//go:build !race

package sandbox

const limitMemory = true
