package sandbox

// LimitsMemory is false where the race detector takes more than any limit.
const LimitsMemory = limitMemory
