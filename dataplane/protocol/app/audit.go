package app

import (
	"maps"
	"strings"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/dataplane/session"
)

const (
	// chunkTime is how much of a session one chunk event sums up.
	chunkTime = 5 * time.Minute

	// maxQuery and the like bound what one event holds of a request.
	maxQuery  = 2 << 10
	maxPath   = 2 << 10
	maxMethod = 32
)

// use is what every connection to an application asks for, with its events.
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
	f := map[string]any{"app_name": r.Name, "app_uri": r.Address, "app_public_addr": r.Name + "." + c.Identity.Cluster}
	if len(r.Labels) > 0 {
		f["app_labels"] = maps.Clone(r.Labels)
	}
	return f
}

// asked is the event of one request.
func (v *visit) asked(r *request) sallyport.Event {
	f := fields(v.candidate)
	f["method"], f["path"], f["raw_query"], f["status_code"] = cut(r.method, maxMethod), cut(r.path, maxPath), cut(r.query, maxQuery), int64(r.status())
	if r.upgraded.Load() {
		f["upgraded"] = true
	}
	return sallyport.Event{Name: "app.session.request", Code: "T2009I", Fields: f}
}

// count notes a request, and says when a chunk of the session is full.
func (v *visit) count(now time.Time) (chunk *sallyport.Event) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.requests++
	v.chunk.requests++
	if v.chunk.began.IsZero() {
		v.chunk.began = now
	}
	if now.Sub(v.chunk.began) < chunkTime {
		return nil
	}
	f := fields(v.candidate)
	f["session_chunk_id"] = v.session.ID + "/" + v.chunk.began.UTC().Format(time.RFC3339)
	f["requests"] = v.chunk.requests
	v.chunk.requests, v.chunk.began = 0, now
	return &sallyport.Event{Name: "app.session.chunk", Code: "T2008I", Fields: f}
}

// ended are the fields of the end: bytes of bodies from and to the client.
func (v *visit) ended() map[string]any {
	v.mu.Lock()
	defer v.mu.Unlock()
	return map[string]any{"rx": v.rx.Load(), "tx": v.tx.Load(), "requests": v.requests}
}

// cut shortens at a rune's border.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
