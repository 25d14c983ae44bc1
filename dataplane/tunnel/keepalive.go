package tunnel

import (
	"net"
	"time"
)

// Keep-alive of data connections: a peer that vanished is found after
// idle + count * interval = 30 s even when nobody sends; that a whole agent or
// gateway vanished is found within 5 s, by the control connection.
const (
	keepIdle     = 15 * time.Second
	keepInterval = 5 * time.Second
	keepCount    = 3
)

func keepAliveConfig() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: keepIdle, Interval: keepInterval, Count: keepCount}
}
