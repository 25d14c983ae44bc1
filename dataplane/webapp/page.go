package webapp

import (
	"bytes"
	"fmt"
	"html/template"
	"maps"
	"net/http"
)

// ours are the headers of every answer that is not an application's.
func ours(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Security-Policy", "default-src 'none'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin") // what opened the window does not see a code in its address
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	// Each login passes here. Of the application's own host alone: what is below it is not ours.
	h.Set("Strict-Transport-Security", "max-age=31536000")
}

// tell answers in plain text: what, and the next step.
func tell(w http.ResponseWriter, status int, fact, hint string) {
	h := w.Header()
	maps.DeleteFunc(h, func(name string, _ []string) bool { return name != "Connection" }) // what an application may have begun to say; that one is ours
	ours(h)
	h.Set("Content-Type", "text/plain; charset=utf-8")
	text := fmt.Sprintf("%d %s\n\n%s\n", status, http.StatusText(status), fact)
	if hint != "" {
		text += hint + "\n"
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // a browser that is gone reads nothing
}

// page is one of our own at an application's origin.
type page struct {
	Title, Text string
	Link        string // to the application; "" for none
	Button      string // of a form to the page itself; "" for none
}

var pages = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Title}}</title></head>
<body><h1>{{.Title}}</h1>
{{with .Text}}<p>{{.}}</p>
{{end}}{{with .Button}}<form method="post"><button>{{.}}</button></form>
{{end}}{{with .Link}}<p><a href="/">{{.}}</a></p>
{{end}}</body></html>
`))

func show(w http.ResponseWriter, status int, p page) {
	var b bytes.Buffer
	if err := pages.Execute(&b, p); err != nil {
		tell(w, http.StatusInternalServerError, "something went wrong here", "")
		return
	}
	ours(w.Header())
	if p.Button != "" {
		// By no-referrer the form would be sent with "Origin: null" (Fetch, section 3.1),
		// and be foreign to a browser without Sec-Fetch-Site.
		w.Header().Set("Referrer-Policy", "same-origin")
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}
