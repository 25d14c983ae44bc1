package redis

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sallyport/sallyport"
)

// Codes of errors, by which clients tell them apart: the first word of the text.
const (
	codeError     = "ERR"
	codeNoAuth    = "NOAUTH"    // who has named no user
	codeNoPerm    = "NOPERM"    // what may not be
	codeWrongPass = "WRONGPASS" // what the server does not take
)

// refusal is why a command or a client is refused: what it is told, as a Redis
// error. Its Error is the fact.
type refusal struct {
	*sallyport.Problem
	code string
}

// Unwrap lets errors.As find the Problem, and errors.Is its kind and cause.
func (r *refusal) Unwrap() error { return r.Problem }

// refuse makes a refusal with a fact and a hint.
func refuse(code string, kind error, fact, hint string) *refusal {
	return &refusal{Problem: &sallyport.Problem{Kind: kind, Fact: fact, Hint: hint}, code: code}
}

// because adds the cause, which is for the log only.
func (r *refusal) because(cause error) *refusal {
	r.Cause = cause
	return r
}

// malformedf says as servers do what is wrong with the protocol.
func malformedf(format string, args ...any) *refusal {
	return refuse(codeError, sallyport.ErrInvalid, "Protocol error: "+fmt.Sprintf(format, args...), "")
}

func tooLong(name []byte) *refusal {
	return refuse(codeError, sallyport.ErrExhausted, fmt.Sprintf("%q with more than %d bytes is not served", name, bufferSize), "")
}

// refusalOf turns any error into what may be told: a Problem's fact, and of
// anything else only that it happened.
func refusalOf(err error, code string) *refusal {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r
	}
	if p, ok := errors.AsType[*sallyport.Problem](err); ok {
		return &refusal{Problem: p, code: code}
	}
	return refuse(codeError, sallyport.ErrUnavailable, "the session cannot be served", "ask your administrator to look at the agent's log").because(err)
}

// ended is the refusal of a session that must end now.
func ended(cause error) *refusal {
	if p, ok := errors.AsType[*sallyport.Problem](cause); ok {
		return &refusal{Problem: p, code: codeNoPerm}
	}
	return refuse(codeError, sallyport.ErrUnavailable, "the session was ended by the agent", "connect again").because(cause)
}

// lineMax is how long an error may be.
const lineMax = 1024

// reply is the error that says it. There is one text, so the hint stands behind
// the fact.
func (r *refusal) reply() []byte {
	text := r.code + " " + r.Fact
	if r.Hint != "" {
		text += " (" + r.Hint + ")"
	}
	text = strings.Map(func(c rune) rune {
		if unicode.IsControl(c) {
			return ' '
		}
		return c
	}, text)
	for len(text) > lineMax {
		_, n := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-n]
	}
	return []byte("-" + text + "\r\n")
}
