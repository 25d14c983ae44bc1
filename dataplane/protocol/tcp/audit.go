package tcp

import (
	"errors"
	"syscall"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

// use is what every TCP session asks for, with its events: those of TCP
// applications.
func use(c *session.Candidate) session.Use {
	return session.Use{
		Action: sallyport.ActionConnect,
		Start:  sallyport.Event{Name: "app.session.start", Code: "T2007I", Fields: fields(c)},
		Denied: sallyport.Event{Name: "app.session.start", Code: "T2007E", Fields: fields(c)},
		End:    sallyport.Event{Name: "app.session.end", Code: "T2011I", Fields: fields(c)},
	}
}

func fields(c *session.Candidate) map[string]any {
	r := c.Resource
	f := map[string]any{"app_name": r.Name, "app_uri": "tcp://" + r.Address, "app_public_addr": r.Name + ".tcp." + c.Identity.Cluster, "proto": "tcp"}
	if len(r.Labels) > 0 {
		f["app_labels"] = r.Labels
	}
	return f
}

// fields of the end: bytes from and to the client, and why it broke if it did.
func (t *traffic) fields() map[string]any {
	f := map[string]any{"rx": t.rx.Load(), "tx": t.tx.Load()}
	if t.failed != nil {
		f["error"] = t.failed.Error()
	}
	return f
}

// isNotConnected says that the peer has gone meanwhile: there is no half left
// to close, and whether bytes were lost the other direction says.
func isNotConnected(err error) bool { return errors.Is(err, syscall.ENOTCONN) }
