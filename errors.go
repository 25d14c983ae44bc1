package sallyport

import "errors"

// Sentinels that programs test with errors.Is. What a person reads is a Problem.
var (
	ErrDenied        = errors.New("access denied")
	ErrNotFound      = errors.New("not found")
	ErrExists        = errors.New("already exists")
	ErrConflict      = errors.New("changed meanwhile")
	ErrUnauthorized  = errors.New("not authenticated")
	ErrInvalid       = errors.New("invalid input")
	ErrUnavailable   = errors.New("unavailable")
	ErrExhausted     = errors.New("limit reached")
	ErrStaleSnapshot = errors.New("no recent contact with auth")
)

// Problem is an error with two faces: Kind is what the program tests (one of
// the sentinels above, by errors.Is), Fact and Hint are what a person reads.
// Fact is a lower-case sentence without a full stop; Hint is the next step, may
// be empty. Neither holds secrets or addresses of insiders. Cause, if any, is
// for the log only.
type Problem struct {
	Kind  error
	Fact  string
	Hint  string
	Cause error
}

// Error returns the fact.
func (p *Problem) Error() string { return p.Fact }

// Unwrap lets errors.Is find the kind and the cause.
func (p *Problem) Unwrap() []error {
	if p.Cause == nil {
		return []error{p.Kind}
	}
	return []error{p.Kind, p.Cause}
}

// Denied makes the Problem of a refused use.
func Denied(fact, hint string) *Problem {
	return &Problem{Kind: ErrDenied, Fact: fact, Hint: hint}
}
