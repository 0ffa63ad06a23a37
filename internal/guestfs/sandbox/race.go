//go:build race

package sandbox

// The race detector maps more memory than any limit would allow.
const limitMemory = false
