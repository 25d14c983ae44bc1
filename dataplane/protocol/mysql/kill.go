package mysql

import (
	"context"
	"fmt"
	"time"

	proto "github.com/go-mysql-org/go-mysql/mysql"

	"github.com/sallyport/sallyport/dataplane/database"
)

// killTime bounds the connection that ends a session's statement.
const killTime = 5 * time.Second

// killLater ends the thread of a session that is over: a server does not notice
// the loss of a connection while it works. It logs in as the same user, who may
// end threads of their own. The session's end waits for it.
func (l *live) killLater(thread uint32) {
	l.kills.Add(1)
	go l.kill(thread)
}

func (l *live) kill(thread uint32) {
	defer l.kills.Done()
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	// The session's own login stands: no database, and no answers of many packets.
	first := *l.first
	first.schema, first.caps = "", first.caps&^(layout|proto.CLIENT_CONNECT_WITH_DB)
	again := &live{server: l.server, bounds: l.bounds, sess: l.sess, first: &first, met: &met{ahead: &l.server.ahead}}
	db, _, err := again.dial(ctx)
	if err != nil {
		return // the server is away, and the statement with it
	}
	defer database.HangUp(db.conn)
	db.conn.SetDeadline(time.Now().Add(killTime))
	command := fmt.Appendf([]byte{proto.COM_QUERY}, "KILL %d", thread)
	if _, err := db.conn.Write(appendPacket(nil, 0, command)); err != nil {
		return
	}
	readPacket(db.conn, responseMax)
}
