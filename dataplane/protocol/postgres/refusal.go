package postgres

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/sallyport/sallyport"
)

// SQLSTATEs that are sent (appendix "PostgreSQL Error Codes").
const (
	stateUnableToConnect = "08001" // sqlclient_unable_to_establish_sqlconnection
	stateConnectionLost  = "08006" // connection_failure
	stateProtocol        = "08P01" // protocol_violation
	stateUnsupported     = "0A000" // feature_not_supported
	stateNotAuthorized   = "28000" // invalid_authorization_specification
	stateOutOfMemory     = "53200" // out_of_memory
	stateTooMany         = "53300" // too_many_connections
	stateTooLong         = "54000" // program_limit_exceeded
	stateEnded           = "57P01" // admin_shutdown
)

// refusal is why a client is dismissed: what it is told, as a FATAL
// ErrorResponse. Its Error is the fact.
type refusal struct {
	*sallyport.Problem
	state string
	wire  []byte // the server's own ErrorResponse, to be passed on as it is; or nil
}

// Unwrap lets errors.As find the Problem, and errors.Is its kind and cause.
func (r *refusal) Unwrap() error { return r.Problem }

// refuse makes a refusal with a fact and a hint.
func refuse(state string, kind error, fact, hint string) *refusal {
	return &refusal{Problem: &sallyport.Problem{Kind: kind, Fact: fact, Hint: hint}, state: state}
}

// because adds the cause, which is for the log only.
func (r *refusal) because(cause error) *refusal {
	r.Cause = cause
	return r
}

func malformedf(format string, args ...any) *refusal {
	return refuse(stateProtocol, sallyport.ErrInvalid, "malformed packet: "+fmt.Sprintf(format, args...), "")
}

func unsupported(code uint32) *refusal {
	return refuse(stateUnsupported, sallyport.ErrInvalid,
		fmt.Sprintf("frontend protocol %d.%d is not supported", code>>16, code&0xffff), "use a client that speaks protocol 3")
}

func noUser() *refusal {
	return refuse(stateNotAuthorized, sallyport.ErrInvalid, "no database user in the startup message", "give one, for example with psql -U")
}

func tooLong(kind byte, length, limit uint32) *refusal {
	return refuse(stateTooLong, sallyport.ErrExhausted,
		fmt.Sprintf("message of type %q with %d bytes is too long to be recorded", kind, length),
		fmt.Sprintf("send at most %d bytes in one message, or use COPY", limit))
}

// tooManyLong is for a message that there is no room for beside others.
func tooManyLong() *refusal {
	return refuse(stateOutOfMemory, sallyport.ErrExhausted, "too many long statements are being sent at once", "send fewer at a time, or use COPY")
}

// refusalOf turns any error into what may be told: a Problem's fact with the
// state given, and of anything else only that it happened.
func refusalOf(err error, state string) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if p, ok := errors.AsType[*sallyport.Problem](err); ok {
		return &refusal{Problem: p, state: state}
	}
	return refuse(state, sallyport.ErrUnavailable, "the session cannot be served", "ask your administrator to look at the agent's log").because(err)
}

// ended is the refusal of a session that must end now.
func ended(cause error) *refusal {
	if p, ok := errors.AsType[*sallyport.Problem](cause); ok {
		return &refusal{Problem: p, state: stateEnded}
	}
	return refuse(stateEnded, sallyport.ErrUnavailable, "the session was ended by the agent", "connect again").because(cause)
}

// message is the ErrorResponse that says it.
func (r *refusal) message() []byte {
	if r.wire != nil {
		return r.wire
	}
	e := pgproto3.ErrorResponse{
		Severity:            "FATAL",
		SeverityUnlocalized: "FATAL",
		Code:                r.state,
		Message:             noNUL(r.Fact),
		Hint:                noNUL(r.Hint),
	}
	b, err := e.Encode(nil)
	if err != nil { // only a text of 1 GiB can do that
		return nil
	}
	return b
}

// noNUL keeps a text from ending a field of a message early.
func noNUL(s string) string { return strings.ReplaceAll(s, "\x00", "") }
