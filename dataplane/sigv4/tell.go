package sigv4

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"strings"
)

// Codes of errors that every client knows.
const (
	AccessDenied = "AccessDenied"
	BadRequest   = "ValidationError"
	Unavailable  = "ServiceUnavailable"
)

// Fault is an answer in place of AWS's.
type Fault struct {
	Status  int
	Code    string
	Message string
	Service string // whose errors the client reads; "" when not known
}

type fault struct {
	Type    string `xml:"Type,omitempty"`
	Code    string `xml:"Code"`
	Message string `xml:"Message"`
}

// Tell answers in the form that the client of the service reads: S3's, EC2's and
// the query protocol's are XML, the others JSON with the code in a header.
func Tell(w http.ResponseWriter, r *http.Request, f Fault) {
	body, form := f.body(r)
	h := w.Header()
	clear(h)
	h.Set("Content-Type", form)
	h.Set("X-Amzn-Errortype", f.Code)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Connection", "close") // the rest of a request is not read
	w.WriteHeader(f.Status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that is gone reads nothing
	}
}

func (f Fault) body(r *http.Request) (body []byte, form string) {
	e := fault{Code: f.Code, Message: f.Message}
	var v any
	switch {
	case f.Service == "s3":
		v = struct {
			XMLName xml.Name `xml:"Error"`
			fault
		}{fault: e}
	case f.Service == "ec2":
		v = struct {
			XMLName xml.Name `xml:"Response"`
			Error   fault    `xml:"Errors>Error"`
		}{Error: e}
	case strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded"):
		e.Type = "Sender"
		v = struct {
			XMLName xml.Name `xml:"ErrorResponse"`
			Error   fault    `xml:"Error"`
		}{Error: e}
	default:
		body, _ = json.Marshal(map[string]string{"__type": f.Code, "message": f.Message}) // texts always do
		form = "application/json"
		if t := r.Header.Get("Content-Type"); strings.HasPrefix(t, "application/x-amz-json-1.") {
			form = "application/x-amz-json-1.0"
		}
		return body, form
	}
	body, _ = xml.Marshal(v) // texts always do
	return append([]byte(xml.Header), body...), "application/xml"
}
