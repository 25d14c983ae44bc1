package dial

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/sallyport/sallyport"
)

// kubeHead bounds the request that is answered in the API server's place.
const kubeHead = 64 << 10

// tellKube answers a client of a Kubernetes API with a Status, once it has asked for
// something: Go's clients take what comes before for a broken connection.
func (p *LocalProxy) tellKube(local net.Conn, err error) {
	local.SetDeadline(time.Now().Add(preambleTimeout))
	r, rerr := http.ReadRequest(bufio.NewReader(io.LimitReader(local, kubeHead)))
	if rerr != nil {
		abort(local)
		return
	}
	p.part(local, refusedKube(r, err))
}

// refusedKube is an answer to r by which its connection ends. The document is
// metav1.Status, which kubectl prints as its own errors.
func refusedKube(r *http.Request, err error) []byte {
	code, reason := http.StatusServiceUnavailable, "ServiceUnavailable"
	message := "the cluster cannot be reached"
	switch {
	case errors.Is(err, sallyport.ErrUnauthorized): // kubectl says at least that one must log in where it leaves the message out
		code, reason = http.StatusUnauthorized, "Unauthorized"
	case errors.Is(err, sallyport.ErrDenied):
		code, reason = http.StatusForbidden, "Forbidden"
	}
	if problem, ok := errors.AsType[*sallyport.Problem](err); ok {
		message = problem.Fact
		if problem.Hint != "" {
			message += " (" + problem.Hint + ")"
		}
	}
	body, _ := json.Marshal(map[string]any{ // strings and a number only
		"kind": "Status", "apiVersion": "v1", "metadata": struct{}{},
		"status": "Failure", "message": message, "reason": reason, "code": code,
	})
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n",
		code, http.StatusText(code), len(body))
	if r.Method != http.MethodHead {
		b.Write(body)
	}
	return b.Bytes()
}
