package mysql

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// fault is a server's error number with its SQLSTATE (MySQL "Server Error
// Message Reference"; MariaDB "Error Codes").
type fault struct {
	code  uint16
	state string
}

func faultDenied() fault         { return fault{1045, "28000"} } // ER_ACCESS_DENIED_ERROR
func faultNoMemory() fault       { return fault{1041, "HY000"} } // ER_OUT_OF_RESOURCES
func faultHandshake() fault      { return fault{1043, "08S01"} } // ER_HANDSHAKE_ERROR
func faultUnknownCommand() fault { return fault{1047, "08S01"} } // ER_UNKNOWN_COM_ERROR
func faultTooLarge() fault       { return fault{1153, "08S01"} } // ER_NET_PACKET_TOO_LARGE
func faultOutOfOrder() fault     { return fault{1156, "08S01"} } // ER_NET_PACKETS_OUT_OF_ORDER
func faultMalformed() fault      { return fault{1835, "HY000"} } // ER_MALFORMED_PACKET
func faultNotReached() fault     { return fault{1429, "HY000"} } // ER_CONNECT_TO_FOREIGN_DATA_SOURCE
func faultKilled() fault         { return fault{1927, "70100"} } // ER_CONNECTION_KILLED of MariaDB

// refusal is why a client is dismissed: what it is told, as an ERR packet. Its
// Error is the fact.
type refusal struct {
	*sallyport.Problem
	fault fault
	wire  []byte // the server's own ERR packet, to be passed on as it is; or nil
}

// Unwrap lets errors.As find the Problem, and errors.Is its kind and cause.
func (r *refusal) Unwrap() error { return r.Problem }

// refuse makes a refusal with a fact and a hint.
func refuse(f fault, kind error, fact, hint string) *refusal {
	return &refusal{Problem: &sallyport.Problem{Kind: kind, Fact: fact, Hint: hint}, fault: f}
}

// because adds the cause, which is for the log only.
func (r *refusal) because(cause error) *refusal {
	r.Cause = cause
	return r
}

func malformedf(format string, args ...any) *refusal {
	return refuse(faultMalformed(), sallyport.ErrInvalid, "malformed packet: "+fmt.Sprintf(format, args...), "")
}

func outOfOrder(got, want byte) *refusal {
	return refuse(faultOutOfOrder(), sallyport.ErrInvalid, fmt.Sprintf("malformed packet: sequence id %d in place of %d", got, want), "")
}

// tooManyLong is for a command that there is no room for beside others.
func tooManyLong() *refusal {
	return refuse(faultNoMemory(), sallyport.ErrExhausted, "too many long statements are being sent at once", "send fewer at a time, or use LOAD DATA LOCAL INFILE")
}

func tooLong(limit int) *refusal {
	return refuse(faultTooLarge(), sallyport.ErrExhausted, "the command is too long to be recorded",
		fmt.Sprintf("send at most %d bytes in one statement, or use LOAD DATA LOCAL INFILE", limit))
}

// refusalOf turns any error into what may be told: a Problem's fact, and of
// anything else only that it happened.
func refusalOf(err error, f fault) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if p, ok := errors.AsType[*sallyport.Problem](err); ok {
		return &refusal{Problem: p, fault: f}
	}
	return refuse(f, sallyport.ErrUnavailable, "the session cannot be served", "ask your administrator to look at the agent's log").because(err)
}

// ended is the refusal of a session that must end now.
func ended(cause error) *refusal {
	if p, ok := errors.AsType[*sallyport.Problem](cause); ok {
		return &refusal{Problem: p, fault: faultKilled()}
	}
	return refuse(faultKilled(), sallyport.ErrUnavailable, "the session was ended by the agent", "connect again").because(cause)
}

// textMax is what clients keep of an error's text (MYSQL_ERRMSG_SIZE).
const textMax = 511

// payload is the ERR packet that says it. There is one text, so the hint stands
// behind the fact.
func (r *refusal) payload() []byte {
	if r.wire != nil {
		return r.wire
	}
	text := r.Fact
	if r.Hint != "" {
		text += " (" + r.Hint + ")"
	}
	text = strings.ReplaceAll(text, "\x00", "")
	for len(text) > textMax {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return errPacket(r.fault.code, r.fault.state, text)
}
