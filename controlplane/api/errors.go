package api

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/sallyport/sallyport"
)

// hintHeader carries a problem's hint; controlplane/client reads it.
const hintHeader = "Sallyport-Hint"

// refusal turns an error into what a caller may read: the fact and the hint of
// a Problem. Any other error is our fault; its text stays in the log.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	var ce *connect.Error
	if errors.As(err, &ce) {
		return err
	}
	var p *sallyport.Problem
	if !errors.As(err, &p) {
		return &internal{err}
	}
	ce = connect.NewError(code(p.Kind), errors.New(p.Fact))
	if p.Hint != "" {
		ce.Meta().Set(hintHeader, p.Hint)
	}
	return ce
}

// internal hides an unexpected error from the caller and keeps it for the log.
type internal struct{ cause error }

func (e *internal) Error() string { return e.cause.Error() }

func (e *internal) Unwrap() error { return e.cause }

func code(err error) connect.Code {
	for _, c := range []struct {
		kind error
		code connect.Code
	}{
		{context.Canceled, connect.CodeCanceled},
		{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
		{sallyport.ErrUnauthorized, connect.CodeUnauthenticated},
		{sallyport.ErrDenied, connect.CodePermissionDenied},
		{sallyport.ErrNotFound, connect.CodeNotFound},
		{sallyport.ErrExists, connect.CodeAlreadyExists},
		{sallyport.ErrConflict, connect.CodeAborted},
		{sallyport.ErrInvalid, connect.CodeInvalidArgument},
		{sallyport.ErrExhausted, connect.CodeResourceExhausted},
		{sallyport.ErrUnavailable, connect.CodeUnavailable},
		{sallyport.ErrStaleSnapshot, connect.CodeUnavailable},
	} {
		if errors.Is(err, c.kind) {
			return c.code
		}
	}
	return connect.CodeInternal
}
