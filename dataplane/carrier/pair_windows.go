package carrier

import (
	"errors"
	"net"
	"time"
)

// PairEnd is one end of a pair.
type PairEnd = net.TCPConn

// pairWait is for a connection over the loopback.
const pairWait = 5 * time.Second

// ConnPair makes a connection within this process, over the loopback.
func ConnPair() (far, local *PairEnd, err error) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if err := l.SetDeadline(time.Now().Add(pairWait)); err != nil { // the listener's own, which is closed here
		return nil, nil, err
	}
	conn, err := net.DialTimeout("tcp", l.Addr().String(), pairWait)
	if err != nil {
		return nil, nil, err
	}
	far = conn.(*net.TCPConn)
	if local, err = l.AcceptTCP(); err != nil {
		far.Close()
		return nil, nil, err
	}
	if local.RemoteAddr().String() != far.LocalAddr().String() {
		far.Close()
		local.Close()
		return nil, nil, errors.New("another process has connected to this one's port")
	}
	return far, local, nil
}

// hungUp is not known here before something is written.
func hungUp(*PairEnd) bool { return false }
