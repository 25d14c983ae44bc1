// Package audit keeps what happened so that nobody can make it unhappen: the
// JSON form of events, the spool of a host, and the log of the control plane.
//
//	func Encode(e sallyport.Event) []byte
//	func Decode(line []byte) (sallyport.Event, error)
//
//	type Record struct { Sequence uint64; JSON []byte }
//
//	func OpenSpool(c SpoolConfig) (*Spool, error)   // {Dir, Host, MaxBytes, Log, …}
//	func (*Spool) ID() string                       // "<host id>/<spool UUID>"
//	func (*Spool) Emit(ctx context.Context, e sallyport.Event, durable bool) error
//	func (*Spool) Begin(l Line, durable bool) (Commit, error) // Emit that does not wait
//	func (*Spool) Next(ctx context.Context, after uint64, max int) ([]Record, error) // waits for one at least
//	func (*Spool) Acknowledge(sequence uint64) error
//	func (*Spool) Status() SpoolStatus
//	func (*Spool) Close() error
//
//	func OpenLog(c LogConfig) (*Log, error)         // {Dir, Sign, Log, …}
//	func (*Log) Append(ctx context.Context, spool string, records []Record) (acknowledged uint64, err error)
//	func (*Log) Acknowledged(spool string) uint64
//	func (*Log) Emit(ctx context.Context, e sallyport.Event, durable bool) error // auth's own events
//	func (*Log) Search(ctx context.Context, q Query) ([][]byte, error)           // {From, To, Names, Limit}
//	func (*Log) Head() Head                       // to keep elsewhere, for VerifyAfter
//	func (*Log) Close() error
//	func Verify(dir string, verify func(head, signature []byte) error) (Report, error)
//
//	func VerifyAfter(dir string, verify func(head, signature []byte) error, before Head) (Report, error)
//
// The way of an event:
//
//	Emit ─▶ spool segment ──fsync──▶ durable callers return
//	                 └─Next─▶ shipper ─▶ Log.Append ──fsync──▶ acknowledged ─▶ Spool.Acknowledge
package audit
