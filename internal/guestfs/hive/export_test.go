package hive

// MarvinOf returns the hash of parts.
func MarvinOf(seed uint64, parts ...[]byte) uint64 {
	m := newMarvin(seed)
	for _, b := range parts {
		m.add(b)
	}
	return m.sum()
}

// Marvin returns the hash of b as logs have it.
func Marvin(b []byte) uint64 { return MarvinOf(marvinSeed, b) }
