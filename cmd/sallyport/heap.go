package main

import "runtime"

// heapFloor keeps the collector from running every dozen connections. What an
// agent keeps is some 2 MiB, and Go collects when as much has been added, but
// one handshake makes 100 KiB of garbage. The floor counts as kept, so as much
// may be added before the next collection; nobody touches it, so it takes
// address space and no memory. Where GOMEMLIMIT is set it counts there too.
type heapFloor struct{ untouched []byte }

const heapFloorSize = 16 << 20

func newHeapFloor() *heapFloor { return &heapFloor{make([]byte, heapFloorSize)} }

// release ends it; until then it must be reachable.
func (f *heapFloor) release() { runtime.KeepAlive(f.untouched) }
