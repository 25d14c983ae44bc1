package api

import (
	"net/http"
	"net/netip"
)

// clientAddrHeader carries a web visitor's address. Only gateways are believed,
// and a gateway replaces what visitors send by that name.
const clientAddrHeader = "Sallyport-Client-Addr"

// FromWeb lets a gateway speak for a visitor of its web origin: such a request
// has the visitor's address and nothing of the gateway's rights. A request with
// the header that is not exactly that is refused: it must never go on as the
// gateway's own.
func FromWeb(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		values, told := r.Header[clientAddrHeader]
		if !told {
			next.ServeHTTP(w, r)
			return
		}
		r.Header.Del(clientAddrHeader)
		c := callerOf(r.Context())
		if audienceOf(c) != gateway {
			http.Error(w, "only a gateway may speak for a visitor", http.StatusForbidden)
			return
		}
		if len(values) != 1 {
			http.Error(w, "one visitor has one address", http.StatusBadRequest)
			return
		}
		addr, err := netip.ParseAddrPort(values[0])
		if err != nil {
			http.Error(w, "the visitor's address cannot be read", http.StatusBadRequest)
			return
		}
		next.ServeHTTP(w, r.WithContext(WithCaller(r.Context(), Caller{Web: true, Via: c.Identity, Addr: plain(addr)})))
	})
}
