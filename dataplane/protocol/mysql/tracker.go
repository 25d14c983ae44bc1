package mysql

import (
	"encoding/binary"
	"fmt"

	proto "github.com/go-mysql-org/go-mysql/mysql"
)

// answer is what a server's answer to a command looks like.
type answer byte

const (
	answerNone    answer = iota // there is none
	answerOne                   // one packet, of any kind
	answerResults               // result sets (page "COM_QUERY Response")
	answerPrepare               // page "COM_STMT_PREPARE_OK"
	answerFields                // column definitions up to EOF
	answerRows                  // rows up to EOF (COM_STMT_FETCH)
)

// place is where in an answer the server stands.
type place byte

const (
	idle       place = iota
	first            // before the first packet of an answer or of a result set
	columns          // within the definitions of a result set
	columnsEnd       // before the EOF behind them
	rows
	skipping // within the definitions of a prepared statement
	fields
)

const (
	prefixMax  = 32   // bytes of a packet that are looked at; the longest OK needs 21
	eofMax     = 9    // an EOF packet is shorter
	columnsMax = 4096 // of a table, and so of a result (page "Limits on Table Column Count")
	fileMax    = 4096 // bytes of a file's name (PATH_MAX)
)

// tracker follows the packets of a server's stream: it finds where answers end,
// what a PREPARE was given, and requests for files. It believes nothing that the
// documentation does not say: after an error the stream cannot be read on.
type tracker struct {
	deprecateEOF bool // CLIENT_DEPRECATE_EOF was agreed on

	next     func() (pending, bool)                        // the oldest command that is not answered
	prepared func(p pending, statement uint32, params int) // a statement was
	accepted func(p pending)                               // an EXECUTE that has types was, or a reset
	file     func(p pending, name []byte, seq byte) error  // the server asks for a file
	asking   func() bool                                   // the client has not sent all of it

	place     place
	now       pending
	left      int  // packets of columns or skipping that are to come
	body      int  // bytes of a packet that are still to come
	continued bool // the last packet's payload goes on in the next
	seq       byte // of the last packet that began; 0 before the first of an answer
	errors    int64
	failed    bool // the last packet was an ERR
	asked     bool // the last packet was a request for a file
}

// whole says that the stream stands between two packets, so that an ERR of ours
// may be next.
func (t *tracker) whole() bool { return t.body == 0 && !t.continued }

// sequence is the id of an ERR packet that is put here.
func (t *tracker) sequence() byte {
	if t.place == idle {
		return 1 // what the client expects after its next command
	}
	return t.seq + 1
}

// advance follows p, which begins where the last call's result ended, and
// returns how much of it may pass; the rest is to be shown again with more
// behind it. With an error, what is returned may still pass.
func (t *tracker) advance(p []byte) (int, error) {
	at := 0
	for at < len(p) {
		if t.body > 0 {
			k := min(t.body, len(p)-at)
			t.body -= k
			at += k
			continue
		}
		rest := p[at:]
		if len(rest) < headerSize {
			break
		}
		n := length(rest)
		if len(rest) < headerSize+min(n, prefixMax) {
			break
		}
		if hold, err := t.begin(rest, n); hold || err != nil {
			return at, err
		}
		t.body = n
		t.continued = n == maxPayload
		at += headerSize
	}
	return at, nil
}

// begin takes the packet that b begins with. hold asks for all of it.
func (t *tracker) begin(b []byte, n int) (hold bool, err error) {
	seq, prefix := b[3], b[headerSize:headerSize+min(n, prefixMax)]
	if t.continued {
		t.seq = seq
		return false, nil
	}
	// What the client sends passes as the file's, until that ends.
	if t.asked && t.asking() {
		return false, fmt.Errorf("a packet before the end of the file that it asked for")
	}
	t.asked = false
	if t.place == idle {
		if err := t.start(prefix); err != nil {
			return false, err
		}
	}
	if t.place == first && t.now.answer == answerResults && n > 0 && prefix[0] == proto.LocalInFile_HEADER {
		if n > fileMax {
			return false, fmt.Errorf("a request for a file with a name of %d bytes", n)
		}
		if len(b) < headerSize+n {
			return true, nil
		}
		if err := t.file(t.now, b[headerSize+1:headerSize+n], seq+1); err != nil {
			return false, err
		}
		t.seq, t.asked = seq, true
		return false, nil
	}
	err = t.packet(prefix, n)
	if err == nil {
		t.seq = seq
	}
	return false, err
}

// start is before the first packet of an answer.
func (t *tracker) start(prefix []byte) error {
	p, ok := t.next()
	if !ok {
		// A server that ends a session says so unasked (KILL, shutdown, idle).
		if len(prefix) > 0 && prefix[0] == proto.ERR_HEADER {
			p = pending{answer: answerOne}
		} else {
			return fmt.Errorf("a packet that nobody asked for")
		}
	}
	t.now, t.place, t.seq = p, first, 0
	return nil
}

// packet takes one packet of an answer.
func (t *tracker) packet(prefix []byte, n int) error {
	t.failed = n > 0 && prefix[0] == proto.ERR_HEADER
	if t.failed && t.place != columns && t.place != skipping {
		t.errors++
		t.place = idle
		return nil
	}
	if n == 0 && t.place != rows && t.now.answer != answerOne {
		return fmt.Errorf("an empty packet")
	}
	switch t.place {
	case first:
		if t.now.types != nil || t.now.resets {
			t.accepted(t.now)
		}
		return t.first(prefix, n)
	case columns:
		t.left--
		if t.left == 0 && t.deprecateEOF {
			t.place = rows
		} else if t.left == 0 {
			t.place = columnsEnd
		}
	case columnsEnd:
		if !t.ends(prefix, n) {
			return fmt.Errorf("columns without an end")
		}
		t.place = rows
		if status, _ := t.status(prefix); status&proto.SERVER_STATUS_CURSOR_EXISTS != 0 {
			t.place = idle // the rows are fetched
		}
	case rows, fields:
		if n == 0 || !t.ends(prefix, n) {
			return nil
		}
		return t.resultEnds(prefix)
	case skipping:
		if t.left--; t.left == 0 {
			t.place = idle
		}
	}
	return nil
}

// first takes the first packet of an answer or of a result set, which is no ERR.
func (t *tracker) first(prefix []byte, n int) error {
	switch t.now.answer {
	case answerOne:
		t.place = idle
		return nil
	case answerPrepare:
		return t.prepare(prefix)
	case answerFields:
		t.place = fields
		return t.packet(prefix, n)
	case answerRows:
		t.place = rows
		return t.packet(prefix, n)
	}
	if prefix[0] == proto.OK_HEADER {
		return t.resultEnds(prefix)
	}
	c := cursor{rest: prefix}
	count := c.integer()
	if c.short || count == 0 || count > columnsMax {
		return fmt.Errorf("a result of %d columns", count)
	}
	t.place, t.left = columns, int(count)
	return nil
}

// ends says that a packet is the end of rows or columns: an EOF, or in its
// place an OK that begins with the same byte.
func (t *tracker) ends(prefix []byte, n int) bool {
	if prefix[0] != proto.EOF_HEADER {
		return false
	}
	return n < eofMax || t.deprecateEOF && n < maxPayload
}

// resultEnds takes the OK or EOF at the end of a result set.
func (t *tracker) resultEnds(prefix []byte) error {
	status, err := t.status(prefix)
	if err != nil {
		return err
	}
	t.place = idle
	if t.now.answer == answerResults && status&proto.SERVER_MORE_RESULTS_EXISTS != 0 {
		t.place = first
	}
	return nil
}

// status is the server's status of an OK or EOF packet.
func (t *tracker) status(prefix []byte) (uint16, error) {
	c := cursor{rest: prefix}
	if c.byte() == proto.EOF_HEADER && !t.deprecateEOF {
		c.uint16() // warnings
	} else {
		c.integer() // affected rows
		c.integer() // last id
	}
	status := c.uint16()
	if c.short {
		return 0, fmt.Errorf("an OK that ends early")
	}
	return status, nil
}

// prepare takes the first packet of the answer to COM_STMT_PREPARE.
func (t *tracker) prepare(prefix []byte) error {
	if prefix[0] != proto.OK_HEADER || len(prefix) < 9 {
		return fmt.Errorf("an answer to PREPARE that is none")
	}
	id := binary.LittleEndian.Uint32(prefix[1:])
	cols, params := int(binary.LittleEndian.Uint16(prefix[5:])), int(binary.LittleEndian.Uint16(prefix[7:]))
	t.prepared(t.now, id, params)
	t.left = 0
	for _, n := range []int{params, cols} {
		t.left += n
		if n > 0 && !t.deprecateEOF {
			t.left++
		}
	}
	t.place = skipping
	if t.left == 0 {
		t.place = idle
	}
	return nil
}
