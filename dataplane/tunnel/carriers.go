package tunnel

// Carrier names a way for an agent's data connections.
type Carrier string

// The carriers, in the order in which an agent tries them. The later ones move
// bytes in this process and not in the kernel.
const (
	CarrierTCP       Carrier = "tcp"       // plain TCP
	CarrierTLS       Carrier = "tls"       // inside TLS, with the protocol id of control connections
	CarrierWebSocket Carrier = "websocket" // inside a WebSocket, RFC 6455, on the gateway's web origin
)

// The numbers of carriers in tunnel.carrier.
const (
	carriedNone = iota
	carriedTCP
	carriedTLS
	carriedWebSocket
)

func carrierName(n int32) string {
	return [...]string{
		carriedNone: "", carriedTCP: string(CarrierTCP), carriedTLS: string(CarrierTLS), carriedWebSocket: string(CarrierWebSocket),
	}[n]
}
