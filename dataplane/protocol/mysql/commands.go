package mysql

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"

	proto "github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport/dataplane/database"
)

// statement is what is known of a prepared statement.
type statement struct {
	number int64 // of its PREPARE in the session, from 1
	params int
	types  []byte       // two for each parameter, of the last EXECUTE that had them
	turn   int64        // how many EXECUTEs had types
	taken  bool         // the server has read the last of them
	long   map[int]bool // parameters whose values were sent before
	blind  bool         // which these are, for the server, is not known
}

// lastStatement is MariaDB's name for the statement that was prepared last, answered
// or not (LAST_STMT_ID).
const lastStatement = math.MaxUint32

// statementsMost are remembered of one session; of more, parameters are recorded
// raw. It is the default of the server's max_prepared_stmt_count and some.
const statementsMost = 20_000

// paramsMost are the parameters of all statements that are remembered: of each there
// may be a type, and a value that was sent before. One statement has 65,535 at most.
const paramsMost = 1 << 17

// executeFixed is what COM_STMT_EXECUTE has before the parameters: the
// statement, flags, a count.
const executeFixed = 9

// values reads the parameters of a COM_STMT_EXECUTE (page "COM_STMT_EXECUTE"),
// without its fixed part. It reports false when they cannot be read as that, and
// an error when a server could read them as others.
func (st *statement) values(b []byte) (v database.Values, ok bool, err error) {
	v = database.NewValues()
	if st.params == 0 {
		return v, true, nil
	}
	if st.blind {
		st.types, st.taken = nil, false
		return v, false, nil
	}
	c := cursor{rest: b}
	nulls := c.bytes((st.params + 7) / 8)
	null := func(i int) bool { return nulls[i/8]>>(i%8)&1 == 1 }
	if err := st.readTypes(&c, null); err != nil || len(st.types) == 0 {
		return v, false, err
	}
	for i := range st.params {
		switch {
		case st.long[i]:
			v.Add([]byte("(sent before)"), false)
		case null(i):
			v.Add(nil, false)
		default:
			b, ok := c.value(st.types[2*i], st.types[2*i+1]&proto.PARAM_UNSIGNED != 0)
			if !ok {
				return v, false, nil
			}
			v.Add(b, false)
		}
	}
	return v, len(c.rest) == 0, nil
}

// readTypes reads the types of the parameters, which stay those of the statement
// until others come. They are not known, and st.types is empty, unless the server
// has read them too: it forgets, or never sees, those of an EXECUTE that it refuses.
func (st *statement) readTypes(c *cursor, null func(i int) bool) error {
	switch has := c.byte(); {
	case has > 1:
		return malformedf("COM_STMT_EXECUTE with %d where it says whether it has types", has)
	case c.short, has == 0 && !st.taken:
		st.types, st.taken = nil, false
		return nil
	case has == 0:
		return nil
	}
	st.types, st.turn, st.taken = append([]byte(nil), c.bytes(2*st.params)...), st.turn+1, false
	for i := range len(st.types) / 2 {
		kind := st.types[2*i]
		if !(readAlike(kind) || kind == proto.MYSQL_TYPE_NULL && null(i)) {
			return malformedf("a parameter of type %d", kind)
		}
	}
	return nil
}

// readAlike says that every server takes a value of a type for as many bytes as
// value does. Of YEAR, INT24, BIT and GEOMETRY MariaDB takes none
// (Type_handler::Item_param_set_param_func), and MySQL a string; other numbers
// are of types that no client sends.
func readAlike(kind byte) bool {
	switch kind {
	case proto.MYSQL_TYPE_INT24, proto.MYSQL_TYPE_YEAR, proto.MYSQL_TYPE_NULL, proto.MYSQL_TYPE_NEWDATE:
		return false
	}
	return kind <= proto.MYSQL_TYPE_VARCHAR || kind >= proto.MYSQL_TYPE_JSON && kind <= proto.MYSQL_TYPE_STRING
}

// value reads one value in binary form (page "Binary Protocol Resultset",
// "Binary Protocol Value") and returns it as text.
func (c *cursor) value(kind byte, unsigned bool) ([]byte, bool) {
	var text []byte
	switch kind {
	case proto.MYSQL_TYPE_TINY:
		text = number(uint64(c.byte()), 8, unsigned)
	case proto.MYSQL_TYPE_SHORT:
		text = number(uint64(c.uint16()), 16, unsigned)
	case proto.MYSQL_TYPE_LONG:
		text = number(uint64(c.uint32()), 32, unsigned)
	case proto.MYSQL_TYPE_LONGLONG:
		text = number(c.uint64(), 64, unsigned)
	case proto.MYSQL_TYPE_FLOAT:
		text = strconv.AppendFloat(nil, float64(math.Float32frombits(c.uint32())), 'g', -1, 32)
	case proto.MYSQL_TYPE_DOUBLE:
		text = strconv.AppendFloat(nil, math.Float64frombits(c.uint64()), 'g', -1, 64)
	case proto.MYSQL_TYPE_DATE, proto.MYSQL_TYPE_DATETIME, proto.MYSQL_TYPE_TIMESTAMP:
		text = moment(c.bytes(int(c.byte())))
	case proto.MYSQL_TYPE_TIME:
		text = duration(c.bytes(int(c.byte())))
	default: // all others are strings
		text = c.counted()
	}
	return text, !c.short && text != nil
}

func (c *cursor) uint64() uint64 {
	if b := c.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func number(v uint64, bits int, unsigned bool) []byte {
	if unsigned {
		return strconv.AppendUint(nil, v, 10)
	}
	return strconv.AppendInt(nil, int64(v<<(64-bits))>>(64-bits), 10)
}

// moment writes a date with or without a time; nil for what is none.
func moment(b []byte) []byte {
	c := cursor{rest: b}
	switch len(b) {
	case 0:
		return []byte("0000-00-00")
	case 4, 7, 11:
	default:
		return nil
	}
	out := fmt.Appendf(nil, "%04d-%02d-%02d", c.uint16(), c.byte(), c.byte())
	if len(b) > 4 {
		out = fmt.Appendf(out, " %02d:%02d:%02d", c.byte(), c.byte(), c.byte())
	}
	if len(b) > 7 {
		out = fmt.Appendf(out, ".%06d", c.uint32())
	}
	return out
}

func duration(b []byte) []byte {
	c := cursor{rest: b}
	switch len(b) {
	case 0:
		return []byte("00:00:00")
	case 8, 12:
	default:
		return nil
	}
	sign := ""
	if c.byte() != 0 {
		sign = "-"
	}
	hours := uint64(c.uint32()) * 24
	out := fmt.Appendf(nil, "%s%02d:%02d:%02d", sign, hours+uint64(c.byte()), c.byte(), c.byte())
	if len(b) > 8 {
		out = fmt.Appendf(out, ".%06d", c.uint32())
	}
	return out
}

// rawMax is how much of parameters that cannot be read is recorded: in base64, the
// 48 KiB that one event holds of others, so that only their form is lost.
const rawMax = 36 << 10

// unread are the fields for parameters that could not be read.
func unread(b []byte) map[string]any {
	f := map[string]any{"parameters_raw": base64.StdEncoding.EncodeToString(b[:min(len(b), rawMax)])}
	if len(b) > rawMax {
		sum := sha256.Sum256(b)
		f["parameters_sha256"] = hex.EncodeToString(sum[:])
		f["parameters_truncated"] = true
		f["parameters_size"] = int64(len(b))
	}
	return f
}
