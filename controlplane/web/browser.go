package web

import "strings"

// Products and systems as browsers name them in User-Agent (RFC 9110, section 10.1.5),
// the telling ones first: each pretends to be those that were there before it.
var (
	products = []struct{ token, name string }{
		{"Edg/", "Edge"}, {"EdgA/", "Edge"}, {"EdgiOS/", "Edge"}, {"OPR/", "Opera"}, {"Vivaldi/", "Vivaldi"}, {"SamsungBrowser/", "Samsung Internet"},
		{"Firefox/", "Firefox"}, {"FxiOS/", "Firefox"}, {"HeadlessChrome/", "Chrome"}, {"CriOS/", "Chrome"}, {"Chrome/", "Chrome"}, {"Version/", "Safari"},
	}
	systems = []struct{ token, name string }{
		{"Windows", "Windows"}, {"iPhone", "iPhone"}, {"iPad", "iPad"}, {"Android", "Android"}, {"CrOS", "ChromeOS"},
		{"Macintosh", "macOS"}, {"FreeBSD", "FreeBSD"}, {"OpenBSD", "OpenBSD"}, {"Linux", "Linux"},
	}
)

// browserName is what a person calls the browser that has sent this User-Agent, such
// as "Firefox 128 on Windows", or what it has sent where that is not known.
func browserName(agent string) string {
	if !strings.HasPrefix(agent, "Mozilla/") {
		return agent
	}
	for _, p := range products {
		_, version, found := strings.Cut(agent, " "+p.token)
		if !found || p.name == "Safari" && !strings.Contains(version, " Safari/") {
			continue
		}
		name := p.name
		if n := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' }); n > 0 {
			name += " " + version[:n]
		} else if n < 0 && version != "" {
			name += " " + version
		}
		for _, s := range systems {
			if strings.Contains(agent, s.token) {
				return name + " on " + s.name
			}
		}
		return name
	}
	return agent
}
