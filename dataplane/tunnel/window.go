package tunnel

// windowSize is how far behind the highest counter a data hello may come. An
// agent dials at most a pool's ceiling at once, so this is ample.
const windowSize = 1024

// window remembers which counters of a tunnel were used: the sliding window of
// RFC 6479, in blocks of 64 with one block to spare. The zero value has seen
// nothing. The tunnel's pool lock guards it: all loops share one.
type window struct {
	any     bool
	highest uint64
	bits    [windowSize/64 + 1]uint64
}

// use reports whether n is new, and marks it as seen. A counter below the
// window counts as seen.
func (w *window) use(n uint64) bool {
	if !w.any {
		w.any, w.highest = true, n
	}
	if n > w.highest {
		w.slide(n)
	}
	if w.highest-n >= windowSize {
		return false
	}
	block, bit := w.place(n)
	if *block&bit != 0 {
		return false
	}
	*block |= bit
	return true
}

// slide moves the window's upper end to n and forgets what falls out below.
func (w *window) slide(n uint64) {
	from, to := w.highest/64, n/64
	steps := min(to-from, uint64(len(w.bits)))
	for i := range steps {
		w.bits[(from+1+i)%uint64(len(w.bits))] = 0
	}
	w.highest = n
}

func (w *window) place(n uint64) (block *uint64, bit uint64) {
	return &w.bits[n/64%uint64(len(w.bits))], 1 << (n % 64)
}
