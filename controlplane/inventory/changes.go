package inventory

import (
	"sync"
	"time"

	"github.com/sallyport/sallyport"
)

// What an agent may change of its resources' records, in bytes. The store keeps
// the history of 15 minutes: so one agent takes 31 MiB of it at most.
const (
	changesBurst  = 16 << 20 // of what is announced at once, twice as much
	changesMinute = 1 << 20
)

// changes bounds what each agent writes. The zero value is ready.
type changes struct {
	mu    sync.Mutex
	spent map[string]spent // by agent that has announced something new
}

// spent goes down by changesMinute in a minute.
type spent struct {
	bytes int64
	at    time.Time
}

func (s spent) left(now time.Time) int64 {
	gone := min(max(now.Sub(s.at), 0), time.Hour) // an hour is enough for all
	return max(s.bytes-int64(gone)*changesMinute/int64(time.Minute), 0)
}

// take refuses a write of an agent that has written too much lately.
func (c *changes) take(agent string, bytes int, now time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.spent[agent].left(now) + int64(bytes)
	if n > changesBurst {
		return &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "this agent changes what it announces too often",
			Hint: "look for labels that change all the time"}
	}
	if c.spent == nil {
		c.spent = make(map[string]spent)
	}
	c.spent[agent] = spent{n, now}
	return nil
}
