package redis

import (
	"bytes"
	"cmp"
	"fmt"
)

// valuesMax is how many values one message may announce.
const valuesMax = 1 << 40

// swapMax is the longest error of a server that may be one that is exchanged.
const swapMax = 512

// tracker follows the messages of a server's stream, RESP2 and RESP3 alike, by
// their lengths alone: it finds where one ends, counts errors, and exchanges
// those that a stand-in has brought about.
type tracker struct {
	swaps *swaps // or nil
	one   bool   // stop behind the message that has begun

	left   int64 // values of the message that has begun which have not
	skip   int64 // bytes of a text that are still to come, its end included
	inLine bool  // within a line
	cr     bool  // the last byte of the line was a carriage return
	errors int64
}

// whole says that the stream stands between two messages, so that an error of
// ours may be next.
func (t *tracker) whole() bool { return t.left == 0 && t.skip == 0 && !t.inLine }

// advance follows p, which begins where the last call's result ended, writes
// what may pass, and returns how much it has taken; the rest is to be shown
// again with more behind it.
func (t *tracker) advance(p []byte, write func([]byte) error) (int, error) {
	at, passed := 0, 0
	for at < len(p) {
		switch {
		case t.skip > 0:
			k := min(t.skip, int64(len(p)-at))
			t.skip -= k
			at += int(k)
			continue
		case t.inLine:
			at += t.line(p[at:])
			continue
		case t.one && t.whole():
			return at, flush(write, p[passed:at])
		}
		if n := t.short(p[at:]); n > 0 {
			at += n
			continue
		}
		if t.left == 0 && p[at] == '-' && t.swaps.waiting() {
			size, instead, hold := t.swapped(p[at:])
			if hold {
				break
			}
			if size > 0 {
				if err := flush(write, p[passed:at], instead); err != nil {
					return at, err
				}
				at += size
				passed = at
				continue
			}
		}
		n, err := t.begin(p[at:])
		if err != nil {
			return at, cmp.Or(flush(write, p[passed:at]), err)
		}
		if n == 0 {
			break
		}
		at += n
	}
	return at, flush(write, p[passed:at])
}

func flush(write func([]byte) error, parts ...[]byte) error {
	for _, p := range parts {
		if len(p) > 0 {
			if err := write(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// line takes bytes of a line, up to its end.
func (t *tracker) line(p []byte) int {
	end := bytes.IndexByte(p, '\n')
	if end < 0 {
		t.cr = p[len(p)-1] == '\r'
		return len(p)
	}
	if end > 0 {
		t.cr = p[end-1] == '\r'
	}
	t.inLine = !t.cr // a line feed alone is part of the line
	t.cr = false
	return end + 1
}

// begin takes the first byte of a value, with its number when it has one; 0
// asks for more.
func (t *tracker) begin(p []byte) (int, error) {
	switch p[0] {
	case '+', '-', ':', ',', '#', '_', '(':
		if p[0] == '-' && t.left == 0 {
			t.errors++
		}
		t.value()
		t.inLine, t.cr = true, false
		return 1, nil
	case '$', '=', '!', '*', '~', '>', '%', '|':
		return t.counted(p)
	}
	return 0, fmt.Errorf("%q where a value should begin", p[0])
}

// short is begin for what there is most of: a text whose length has few digits.
// It is 0 for anything else.
func (t *tracker) short(p []byte) int {
	const digits = 7
	if len(p) < digits+4 || p[0] != '$' || p[1] == '0' {
		return 0
	}
	n := int64(0)
	for i, c := range p[1 : digits+2] {
		if c >= '0' && c <= '9' {
			n = n*10 + int64(c-'0')
			continue
		}
		if i == 0 || c != '\r' || p[i+2] != '\n' {
			return 0
		}
		t.value()
		t.skip = n + 2
		return i + 3
	}
	return 0
}

// value counts one that has begun.
func (t *tracker) value() {
	if t.left > 0 {
		t.left--
	}
}

// counted takes the line of a text or of a collection.
func (t *tracker) counted(p []byte) (int, error) {
	head := p[:min(len(p), headerMax)]
	end := bytes.IndexByte(head, '\n')
	if end < 0 {
		if len(head) == headerMax {
			return 0, fmt.Errorf("a length without an end")
		}
		return 0, nil
	}
	n, ok := integer(head[1:end])
	if !ok || n < -1 || n > valuesMax {
		return 0, fmt.Errorf("a length that is no number")
	}
	if p[0] == '!' && t.left == 0 {
		t.errors++
	}
	more := max(n, 0)
	switch p[0] {
	case '$', '=', '!':
		more = 0
		if n >= 0 {
			t.skip = n + 2
		}
	case '%':
		more *= 2
	case '|': // what it is about follows
		more = 2*more + 1
	}
	if t.left+more > valuesMax {
		return 0, fmt.Errorf("too many values in a message")
	}
	t.value()
	t.left += more
	return end + 1, nil
}

// swapped looks whether an error is one to be exchanged. hold asks for all of
// its line.
func (t *tracker) swapped(p []byte) (size int, instead []byte, hold bool) {
	end := bytes.IndexByte(p, '\n')
	if end < 0 {
		return 0, nil, len(p) < swapMax
	}
	reply, ok := t.swaps.find(p[:end])
	if !ok {
		return 0, nil, false
	}
	return end + 1, reply, false
}
