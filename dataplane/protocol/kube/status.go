package kube

import (
	"encoding/json"
	"errors"
	"net/http"
	"strconv"

	"github.com/sallyport/sallyport"
)

// status is metav1.Status, which kubectl prints as its own errors.
type status struct {
	Kind       string         `json:"kind"`
	APIVersion string         `json:"apiVersion"`
	Metadata   struct{}       `json:"metadata"`
	Status     string         `json:"status"`
	Message    string         `json:"message"`
	Reason     string         `json:"reason"`
	Details    *statusDetails `json:"details,omitempty"`
	Code       int            `json:"code"`
}

type statusDetails struct {
	Name  string `json:"name,omitempty"`
	Group string `json:"group,omitempty"`
	Kind  string `json:"kind,omitempty"`
}

// reasons are metav1.StatusReason by code.
var reasons = map[int]string{
	http.StatusBadRequest:            "BadRequest",
	http.StatusUnauthorized:          "Unauthorized",
	http.StatusForbidden:             "Forbidden",
	http.StatusNotAcceptable:         "NotAcceptable",
	http.StatusGone:                  "Expired",
	http.StatusRequestEntityTooLarge: "RequestEntityTooLarge",
	http.StatusUnsupportedMediaType:  "UnsupportedMediaType",
	http.StatusTooManyRequests:       "TooManyRequests",
	http.StatusInternalServerError:   "InternalError",
	http.StatusBadGateway:            "ServiceUnavailable",
	http.StatusServiceUnavailable:    "ServiceUnavailable",
}

// codeOf is the status code for an error of ours.
func codeOf(err error) int {
	switch {
	case errors.Is(err, sallyport.ErrDenied), errors.Is(err, sallyport.ErrStaleSnapshot), errors.Is(err, sallyport.ErrUnauthorized):
		return http.StatusForbidden
	case errors.Is(err, errExpired):
		return http.StatusGone
	case errors.Is(err, sallyport.ErrInvalid):
		return http.StatusBadRequest
	case errors.Is(err, sallyport.ErrExhausted):
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable
}

// statusBody is the document of a failure.
func statusBody(code int, message string, r *request) []byte {
	s := status{Kind: "Status", APIVersion: "v1", Status: "Failure", Message: message, Reason: reasons[code], Code: code}
	if r != nil && r.resource != "" {
		s.Details = &statusDetails{Name: r.name, Group: r.group, Kind: r.resource}
	}
	body, _ := json.Marshal(s) // strings and numbers only
	return append(body, '\n')
}

// fail answers with a Status, in JSON: every client of the API reads it.
func fail(w http.ResponseWriter, code int, message string, r *request) {
	body := statusBody(code, message, r)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = w.Write(body) // a client that has gone hears nothing
}

// message is what a person reads.
func message(p *sallyport.Problem) string {
	if p.Hint == "" {
		return p.Fact
	}
	return p.Fact + " (" + p.Hint + ")"
}
