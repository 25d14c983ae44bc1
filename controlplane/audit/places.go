package audit

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/sallyport/sallyport"
)

// forgetStep is how many spools one event names: their names fit into it.
const forgetStep = MaxEvent / (4 * maxSpoolID)

// sender returns the host of a spool.
func (l *Log) sender(spool string) *sender {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.senderLocked(hostOf(spool))
}

func (l *Log) senderLocked(host string) *sender {
	h := l.hosts[host]
	if h == nil {
		h = &sender{}
		l.hosts[host] = h
	}
	return h
}

// place is how far the spool has come; nothing of it is seq 0.
func (l *Log) place(spool string) place {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p := l.spools[spool]; p != nil {
		return *p
	}
	return place{}
}

func (l *Log) placeLocked(spool string) *place {
	p := l.spools[spool]
	if p == nil {
		p = &place{}
		l.spools[spool] = p
		h := l.senderLocked(hostOf(spool))
		h.spools = append(h.spools, spool)
	}
	return p
}

func (l *Log) forgetLocked(spools []string) {
	for _, spool := range spools {
		if l.spools[spool] == nil {
			continue
		}
		delete(l.spools, spool)
		h := l.senderLocked(hostOf(spool))
		h.spools = slices.DeleteFunc(h.spools, func(s string) bool { return s == spool })
	}
}

// room says which spools must be forgotten for a new one of the host, whose
// batch is under way: its own oldest, or the oldest of all. Until release nothing
// is added to what is to be forgotten.
func (l *Log) room(h *sender) (f forgotten, release func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(h.spools) - (maxHostSpools - 1); n > 0 {
		return l.oldestLocked(h.spools, n), func() {}, nil
	}
	if len(l.spools) < l.c.maxSpools {
		return nil, func() {}, nil
	}
	busy := make(map[*sender]bool) // something of theirs is coming just now
	for {
		oldest := l.oldestOfAllLocked(busy)
		if oldest == "" {
			return nil, nil, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: fmt.Sprintf("audit log has events of %d spools, which are the most", l.c.maxSpools)}
		}
		switch of := l.senderLocked(hostOf(oldest)); {
		case of == h:
			return forgotten{oldest}, func() {}, nil
		case of.mu.TryLock():
			return forgotten{oldest}, of.mu.Unlock, nil
		default:
			busy[of] = true
		}
	}
}

// oldestOfAllLocked is the spool for which nothing came for the longest time,
// "" when all their hosts are busy. It takes some milliseconds to look at all,
// but only the first batch of a new spool needs it, in a log that has seen
// hosts come and go for years.
func (l *Log) oldestOfAllLocked(busy map[*sender]bool) (oldest string) {
	for name, p := range l.spools {
		if (oldest == "" || p.at < l.spools[oldest].at) && !busy[l.senderLocked(hostOf(name))] {
			oldest = name
		}
	}
	return oldest
}

// oldestLocked are the n spools of a list for which nothing came for the longest time.
func (l *Log) oldestLocked(spools []string, n int) forgotten {
	byAge := slices.SortedFunc(slices.Values(spools), func(a, b string) int {
		return cmp.Or(cmp.Compare(l.spools[a].at, l.spools[b].at), cmp.Compare(a, b))
	})
	return byAge[:n]
}

// excess are the spools beyond what a host may have, of a log that was kept by
// an earlier version.
func (l *Log) excess() (f forgotten) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, h := range l.hosts {
		if n := len(h.spools) - maxHostSpools; n > 0 {
			f = append(f, l.oldestLocked(h.spools, n)...)
		}
	}
	return f
}

// forget makes entries by which spools are forgotten. What comes of them later
// is told as a gap.
func (l *Log) forget(f forgotten, wait *waiter) []entry {
	var out []entry
	for part := range slices.Chunk(f, forgetStep) {
		l.c.Log.Warn("audit spools are forgotten: there are too many", "spools", len(part), "first", part[0])
		e := l.own(sallyport.Event{Name: AuditForgotten, Code: AuditForgottenCode, Fields: map[string]any{"spools": []string(part)}}, wait)
		e.note = part
		out = append(out, e)
	}
	return out
}

// forgottenOf reads the spools from a line of the log's own; most have none.
func forgottenOf(line []byte) forgotten {
	if name, ok := quickName(line); ok && name != AuditForgotten {
		return nil
	}
	e, err := Decode(line)
	if err != nil || e.Name != AuditForgotten {
		return nil
	}
	list, _ := e.Fields["spools"].([]any)
	var f forgotten
	for _, v := range list {
		if s, ok := v.(string); ok {
			f = append(f, s)
		}
	}
	return f
}
