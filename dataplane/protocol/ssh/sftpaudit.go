package ssh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/sshauth"
)

// What an sftp client may have open at once in our view. Who asks for more is
// not served, because what it does could not be written down.
const (
	maxPending = 8192 // requests without an answer
	maxHandles = 4096
	maxSummary = 100 // files that the summary names
)

var errFlood = errors.New("sftp: more at once than can be written down")

// errHandle ends a session in which the client names a handle ahead of the answer
// that gives it.
var errHandle = errors.New("sftp: a handle that is not given yet")

// errCopies ends a session in which the client asks for what it was not offered.
var errCopies = errors.New("sftp: bytes that the server would move unseen")

// fileAction numbers what is done to files, as Teleport's events do; the code
// of an event is made of it.
type fileAction int

const (
	fileOpen     fileAction = 1
	fileClose    fileAction = 2
	fileRead     fileAction = 3
	fileWrite    fileAction = 4
	fileSetstat  fileAction = 7
	fileFsetstat fileAction = 8
	fileOpendir  fileAction = 9
	fileRemove   fileAction = 11
	fileMkdir    fileAction = 12
	fileRmdir    fileAction = 13
	fileRename   fileAction = 16
	fileSymlink  fileAction = 18
	fileLink     fileAction = 19

	fileCopy fileAction = -1 // refused: see copies
)

// fileLog writes down what an sftp client does to files. It reads the bytes that
// pass between the client and the program which serves it, so that nothing the
// login runs can leave out or invent a line. A nil one looks at nothing.
type fileLog struct {
	ch *channel

	mu        sync.Mutex
	requests  packets               // from the client
	responses packets               // from the program
	greeting  []byte                // its first packet, until it is whole
	greeted   bool                  // it was, and has gone on
	pending   map[uint32]fileOp     // by request id
	opening   int                   // how many of them may be answered with a handle
	handles   map[string]*fileStats // by handle
	moved     []fileStats           // of files that were closed
	files     int                   // of them all
	read      int64
	written   int64
}

// fileOp is a request without its answer.
type fileOp struct {
	action       fileAction
	path, target string
	flags        uint32
	file         *fileStats // what it reads, writes or closes
	size         int64      // bytes that it writes
}

type fileStats struct {
	path          string
	directory     bool
	read, written int64
}

func newFileLog(ch *channel) *fileLog {
	return &fileLog{
		ch: ch, pending: make(map[uint32]fileOp), handles: make(map[string]*fileStats),
		requests: packets{max: maxRequest, data: fxpWrite}, responses: packets{max: maxResponse, data: fxpData},
	}
}

// request sees the client's bytes before the program does. After an error they
// must not reach it.
func (l *fileLog) request(b []byte) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.requests.feed(b, l.asked)
}

// pass is response for the bytes as they come from the program. It gives those that
// may go to the client: the program's offer, which comes first, is held until it is
// whole, and goes on without what cannot be followed.
func (l *fileLog) pass(b []byte) ([]byte, error) {
	if l == nil {
		return b, nil
	}
	b, err := l.greet(b)
	if err != nil {
		return nil, err
	}
	return b, l.response(b)
}

func (l *fileLog) greet(b []byte) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.greeted {
		return b, nil
	}
	l.greeting = append(l.greeting, b...)
	if len(l.greeting) < lengthSize {
		return nil, nil
	}
	size := binary.BigEndian.Uint32(l.greeting)
	if size == 0 || size > maxKept {
		return nil, errPacket
	}
	end := lengthSize + int(size)
	if len(l.greeting) < end {
		return nil, nil
	}
	first, rest := l.greeting[:end], l.greeting[end:]
	l.greeting, l.greeted = nil, true
	first, err := offer(first)
	return append(first, rest...), err
}

// response sees the program's bytes.
func (l *fileLog) response(b []byte) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.responses.feed(b, l.answered)
}

// asked is one request.
func (l *fileLog) asked(size uint32, head []byte) error {
	f := fieldsOf(size, head)
	kind := f.byte()
	id := f.uint32()
	if f.bad {
		return errPacket
	}
	if kind == fxpInit {
		return nil // its number is a version
	}
	op := l.operation(kind, f)
	if f.bad {
		return errPacket
	}
	if op.action == fileCopy {
		return errCopies
	}
	switch op.action {
	case fileRead, fileWrite, fileClose, fileFsetstat:
		// Servers count handles, so one can be guessed before the answer to its
		// open is here. What is done with it would not be known for that file's.
		// Without an open under way it is that of a file that was closed.
		if op.file == nil && l.opening > 0 {
			return errHandle
		}
	}
	if _, twice := l.pending[id]; twice {
		return errPacket // its answers could not be told apart
	}
	if len(l.pending) >= maxPending {
		return errFlood
	}
	l.pending[id] = op
	if op.opens() {
		l.opening++
	}
	return nil
}

// operation reads what a request asks for. Requests that change nothing and
// open nothing have no action.
func (l *fileLog) operation(kind byte, f *fields) fileOp {
	switch kind {
	case fxpOpen:
		return fileOp{action: fileOpen, path: f.string(), flags: f.uint32()}
	case fxpOpendir:
		return fileOp{action: fileOpendir, path: f.string()}
	case fxpClose:
		return fileOp{action: fileClose, target: f.string()}.of(l)
	case fxpRead:
		return fileOp{action: fileRead, target: f.string()}.of(l)
	case fxpWrite:
		op := fileOp{action: fileWrite, target: f.string()}.of(l)
		f.uint32() // the offset, in two halves
		f.uint32()
		op.size = int64(f.uint32())
		return op
	case fxpSetstat:
		return fileOp{action: fileSetstat, path: f.string()}
	case fxpFsetstat:
		return fileOp{action: fileFsetstat, target: f.string()}.of(l)
	case fxpRemove:
		return fileOp{action: fileRemove, path: f.string()}
	case fxpMkdir:
		return fileOp{action: fileMkdir, path: f.string()}
	case fxpRmdir:
		return fileOp{action: fileRmdir, path: f.string()}
	case fxpRename:
		return fileOp{action: fileRename, path: f.string(), target: f.string()}
	case fxpSymlink: // OpenSSH has the two the other way round (PROTOCOL section 4.1)
		return fileOp{action: fileSymlink, target: f.string(), path: f.string()}
	case fxpExtended:
		return l.extended(f)
	}
	return fileOp{}
}

// opens says that the answer may be a handle.
func (op fileOp) opens() bool { return op.action == fileOpen || op.action == fileOpendir }

// extended reads OpenSSH's extensions (PROTOCOL section 4).
func (l *fileLog) extended(f *fields) fileOp {
	name := f.string()
	if copies(name) {
		return fileOp{action: fileCopy}
	}
	switch name {
	case "posix-rename@openssh.com":
		return fileOp{action: fileRename, path: f.string(), target: f.string()}
	case "hardlink@openssh.com":
		return fileOp{action: fileLink, path: f.string(), target: f.string()}
	case "lsetstat@openssh.com":
		return fileOp{action: fileSetstat, path: f.string()}
	}
	return fileOp{}
}

// of finds the open file whose handle the client has named; target is not a path
// here.
func (op fileOp) of(l *fileLog) fileOp {
	op.file = l.handles[op.target]
	if op.file != nil {
		op.path = op.file.path
	}
	if op.action == fileClose && op.file != nil {
		delete(l.handles, op.target) // the number may be another file's before the answer is here
	}
	op.target = ""
	return op
}

// answered is one answer.
func (l *fileLog) answered(size uint32, head []byte) error {
	f := fieldsOf(size, head)
	kind := f.byte()
	id := f.uint32()
	if f.bad {
		return errPacket
	}
	if kind == fxpVersion {
		return nil
	}
	op := l.pending[id]
	delete(l.pending, id)
	if op.opens() {
		l.opening--
	}
	switch kind {
	case fxpStatus:
		l.settle(op, f.uint32())
	case fxpHandle:
		return l.opened(op, f.string())
	case fxpData:
		l.hasRead(op, int64(f.uint32()))
	default: // of requests that change nothing
		l.settle(op, statusOdd)
	}
	return nil
}

// statusOdd stands for an answer of a kind that does not fit the request.
const statusOdd = 5

func (l *fileLog) hasRead(op fileOp, n int64) {
	if op.action != fileRead {
		l.settle(op, statusOdd)
	} else if op.file != nil {
		op.file.read += n
		l.read += n
	}
}

func (l *fileLog) opened(op fileOp, handle string) error {
	if !op.opens() {
		l.settle(op, statusOdd)
		return nil
	}
	if len(l.handles) >= maxHandles {
		return errFlood
	}
	l.handles[handle] = &fileStats{path: op.path, directory: op.action == fileOpendir}
	l.emit(op, "")
	return nil
}

// settle is the end of a request by a status (filexfer-02 section 7); 0 is success.
func (l *fileLog) settle(op fileOp, status uint32) {
	switch {
	case op.action == 0 || op.action == fileRead: // the end of a file is a status too
	case op.action == fileWrite:
		if status == 0 && op.file != nil {
			op.file.written += op.size
			l.written += op.size
		}
	case op.action == fileClose && op.file == nil: // nothing that was open
	case status == 0:
		if op.action == fileClose {
			l.close(*op.file)
		}
		l.emit(op, "")
	default:
		l.emit(op, statusText(status))
	}
}

func (l *fileLog) close(file fileStats) {
	if file.directory {
		return
	}
	l.files++
	if len(l.moved) < maxSummary {
		l.moved = append(l.moved, file)
	}
}

func statusText(status uint32) string {
	texts := [...]string{"ok", "end of file", "no such file", "permission denied", "failure", "bad message", "no connection", "connection lost", "operation unsupported"}
	if status < uint32(len(texts)) {
		return texts[status]
	}
	return fmt.Sprintf("status %d", status)
}

// emit writes one line. Reading and writing are in the line of the close.
func (l *fileLog) emit(op fileOp, fault string) {
	fields := map[string]any{
		"action": int64(op.action), "path": sshauth.Printable(op.path, maxCommand), "working_directory": l.ch.conn.account.home,
		"proto": proto, "server_hostname": hostname(&l.ch.conn.session.Resource),
	}
	if op.target != "" {
		fields["target_path"] = sshauth.Printable(op.target, maxCommand)
	}
	if op.action == fileOpen {
		fields["flags"] = int64(op.flags)
	}
	if op.action == fileClose && !op.file.directory {
		fields["bytes_read"], fields["bytes_written"] = op.file.read, op.file.written
	}
	suffix := "I"
	if fault != "" {
		suffix = "E"
		fields["error"] = fault
	}
	l.event(sallyport.Event{Name: "sftp", Code: fmt.Sprintf("TS%03d%s", op.action, suffix), Fields: fields}, fault == "")
}

func (l *fileLog) event(e sallyport.Event, success bool) {
	e.Success, e.Login, e.ServerID = &success, l.ch.conn.account.name, l.ch.conn.server.HostID
	l.ch.conn.session.Emit(e)
}

// end writes what had no answer, and what it came to in all.
func (l *fileLog) end(state *os.ProcessState) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, op := range l.pending {
		switch op.action {
		case 0, fileRead, fileWrite, fileClose:
		default:
			l.emit(op, "no answer")
		}
	}
	for _, file := range l.handles {
		l.close(*file)
	}
	clear(l.pending)
	clear(l.handles)
	code, fault := outcome(state, nil)
	list := make([]any, 0, len(l.moved))
	for _, file := range l.moved {
		list = append(list, map[string]any{"path": sshauth.Printable(file.path, sshauth.MaxText), "bytes_read": file.read, "bytes_written": file.written})
	}
	l.event(sallyport.Event{Name: "subsystem", Code: pick(fault, "T3001I", "T3001E"), Fields: map[string]any{
		"name": "sftp", "exitError": fault, "exitCode": fmt.Sprint(code), "proto": proto, "server_hostname": hostname(&l.ch.conn.session.Resource),
	}}, fault == "")
	l.event(sallyport.Event{Name: "sftp_summary", Code: "TS021I", Fields: map[string]any{
		"file_transfer_stats": list, "files": int64(l.files), "bytes_read": l.read, "bytes_written": l.written,
		"proto": proto, "server_hostname": hostname(&l.ch.conn.session.Resource),
	}}, true)
}

func pick(fault, good, bad string) string {
	if fault == "" {
		return good
	}
	return bad
}
