package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/tunnel"
)

// TestLogUnserved: a client of a database that is down was told to look at the
// agent's log, which had not a word.
func TestLogUnserved(t *testing.T) {
	refused := fmt.Errorf("dial: %w", syscall.ECONNREFUSED)
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: unknown certificate authority")}
	problem := func(kind, cause error) error {
		return fmt.Errorf("wrapped: %w", &sallyport.Problem{Kind: kind, Fact: "database orders: no", Cause: cause})
	}
	for name, c := range map[string]struct {
		kind sallyport.Kind
		err  error
		want string // in the warning; "" for none
	}{
		"not reached":                {sallyport.KindDatabase, problem(sallyport.ErrUnavailable, refused), "connection refused"},
		"certificate not taken":      {sallyport.KindDatabase, problem(sallyport.ErrDenied, alert), "unknown certificate authority"},
		"denied by a role":           {sallyport.KindDatabase, problem(sallyport.ErrDenied, errors.New("role")), ""},
		"the agent ends":             {sallyport.KindDatabase, problem(sallyport.ErrUnavailable, context.Canceled), ""},
		"the session has ended":      {sallyport.KindDatabase, problem(sallyport.ErrUnavailable, nil), ""},
		"a full spool":               {sallyport.KindDatabase, problem(sallyport.ErrUnavailable, &sallyport.Problem{Kind: sallyport.ErrExhausted, Fact: "audit spool is full"}), ""},
		"auth is away":               {sallyport.KindDatabase, problem(sallyport.ErrUnavailable, fmt.Errorf("no certificate: %w", &sallyport.Problem{Kind: sallyport.ErrUnavailable, Fact: "away", Cause: refused})), ""},
		"the server ends a session":  {sallyport.KindDatabase, problem(sallyport.ErrUnavailable, io.EOF), ""},
		"the client has gone":        {sallyport.KindDatabase, io.EOF, ""},
		"in order":                   {sallyport.KindDatabase, nil, ""},
		"a service, which said so":   {sallyport.KindTCP, problem(sallyport.ErrUnavailable, refused), ""},
		"a client's own TLS failure": {sallyport.KindDatabase, alert, ""},
	} {
		var logged bytes.Buffer
		a := &Agent{Log: slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelInfo}))}
		a.log(&tunnel.Stream{Kind: string(c.kind), Name: "orders"}, c.err)
		got := logged.String()
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) || c.want != "" && (!strings.Contains(got, "level=WARN") || !strings.Contains(got, "name=orders")) {
			t.Errorf("%s: %q", name, got)
		}
	}
}
