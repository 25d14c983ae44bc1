package alpn

// Protocol ids. Ours carry a version; the rest are in the registry of RFC 7301.
const (
	Auth1    = "sallyport-auth/1"    // control API, mutual TLS
	Join1    = "sallyport-join/1"    // joining
	Tunnel1  = "sallyport-tunnel/1"  // an agent's control connection
	Gateway1 = "sallyport-gateway/1" // gateways among themselves
	Store1   = "sallyport-store/1"   // members of the embedded store
	SSH1     = "sallyport-ssh/1"
	DB1      = "sallyport-db/1"
	TCP1     = "sallyport-tcp/1"
	Desktop1 = "sallyport-desktop/1"

	HTTP2      = "h2"
	HTTP11     = "http/1.1"
	PostgreSQL = "postgresql"
	ACMETLS1   = "acme-tls/1" // RFC 8737
)

// Pinned1, offered beside HTTP's ids, asks the web origin for the certificate of
// the cluster's own CA, where it would show a public one. It is never chosen, and
// routes nothing: to a gateway that does not know it, it is as GREASE (RFC 8701).
const Pinned1 = "sallyport-pinned/1"

// ids is a set of protocol ids that this package knows by name.
type ids uint32

const (
	idAuth ids = 1 << iota
	idJoin
	idTunnel
	idGateway
	idStore
	idSSH
	idDB
	idTCP
	idDesktop
	idHTTP2
	idHTTP11
	idHTTPOther // what else of HTTP is in the registry
	idPostgreSQL
	idACME
	idOther // an id this package does not know, GREASE included

	idHTTP = idHTTP2 | idHTTP11
	idOurs = idAuth | idJoin | idTunnel | idGateway | idStore | idSSH | idDB | idTCP | idDesktop
)

// known finds an id's bit. The switch compiles to a search by length and value
// and makes no string.
func known(id []byte) ids {
	switch string(id) {
	case HTTP2:
		return idHTTP2
	case HTTP11:
		return idHTTP11
	case "http/1.0", "http/0.9", "h2c", "h3":
		return idHTTPOther
	case PostgreSQL:
		return idPostgreSQL
	case ACMETLS1:
		return idACME
	case Auth1:
		return idAuth
	case Join1:
		return idJoin
	case Tunnel1:
		return idTunnel
	case Gateway1:
		return idGateway
	case Store1:
		return idStore
	case SSH1:
		return idSSH
	case DB1:
		return idDB
	case TCP1:
		return idTCP
	case Desktop1:
		return idDesktop
	}
	return idOther
}
