package sallyport

import "time"

// Event is one line of the audit log. Name and Code are Teleport's (for
// example "session.start", "T2000I"); the flat JSON form, with the common
// fields of Teleport's events, is written by controlplane/audit.
type Event struct {
	Name string
	Code string
	UID  string // random UUID; a log holds each once
	Time time.Time

	Cluster   string
	User      string
	UserKind  string // "human", "agent", …
	SessionID string
	Login     string
	ServerID  string
	Addr      string // the client's address
	Success   *bool  // nil where the word makes no sense

	// Fields holds what only this kind of event has, by JSON name. Values are
	// strings, bools, int64, float64, or slices and maps of these.
	Fields map[string]any
}
