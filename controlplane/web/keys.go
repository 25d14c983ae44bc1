package web

import "net/http"

// keys shows what tokens for applications are verified by (RFC 7517). It is
// public, and no page.
func (s *site) keys(w http.ResponseWriter, r *http.Request) {
	if s.KeySet == nil {
		s.unknown(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/jwk-set+json")
	h.Set("Cache-Control", "public, max-age=300") // the life of a token
	w.Write(s.KeySet)
}
