package profile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/sallyport/sallyport"
)

// WriteFile replaces a file whole, 0600; directories that are missing are made 0700.
func WriteFile(path string, data []byte) error {
	return replace(path, data, fileMode)
}

// EditFile changes a file that is not ours alone: it stays where its links
// lead, also when there is none yet, keeps its mode, and is not touched when
// nothing changes. A file that becomes empty is removed. What is no file, such as
// /dev/null, has nothing in it, and is not replaced by one.
func EditFile(path string, edit func(old string) string) error {
	path, err := followed(path)
	if err != nil {
		return err
	}
	mode := fs.FileMode(fileMode)
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		if edit("") == "" { // it can have nothing that is to go
			return nil
		}
		return problem(sallyport.ErrInvalid, path+" is no file that could be changed", "name a file")
	default:
		mode = info.Mode().Perm()
	}
	old, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := edit(string(old))
	switch {
	case text == string(old):
		return nil
	case text == "":
		return os.Remove(path)
	}
	return replace(path, []byte(text), mode)
}

// maxLinks is what the system follows too (path_resolution(7)).
const maxLinks = 40

// followed is where a path's links lead; what is there need not exist.
func followed(path string) (string, error) {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real, nil
	}
	for range maxLinks {
		to, err := os.Readlink(path)
		if err != nil {
			return path, nil // no link, or nothing there
		}
		if !filepath.IsAbs(to) {
			dir, err := filepath.EvalSymlinks(filepath.Dir(path)) // where ".." leads from there
			if err != nil {
				return "", err
			}
			to = filepath.Join(dir, to)
		}
		path = to
	}
	return "", problem(sallyport.ErrInvalid, path+" is a link in a circle", "name a file")
}

// replace writes beside the file and renames, so that a reader sees the old
// file or the new one.
func replace(path string, data []byte, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), dirMode); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// SetKnownHosts replaces the profile's lines of known_hosts, each without its
// newline, and keeps all others; none removes them.
func (d Dir) SetKnownHosts(f Profile, lines []string) error {
	return EditFile(d.KnownHosts(), func(old string) string { return withKnown(old, f, lines) })
}

// KnownHostsLine is how a host CA of the profile's cluster is written there
// (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT); key is its authorized_keys form.
func KnownHostsLine(f Profile, key string) string {
	return knownPrefix(f) + "*." + f.Cluster + " " + strings.TrimSpace(key) + " type=host"
}

func knownPrefix(f Profile) string { return "@cert-authority " + f.Name() + "," + f.Cluster + "," }

func withKnown(old string, f Profile, lines []string) string {
	var out strings.Builder
	for line := range strings.Lines(old) {
		if !strings.HasPrefix(line, knownPrefix(f)) {
			out.WriteString(line)
		}
	}
	if len(lines) == 0 {
		return out.String()
	}
	if text := out.String(); text != "" && !strings.HasSuffix(text, "\n") {
		out.WriteByte('\n')
	}
	out.WriteString(strings.Join(lines, "\n") + "\n")
	return out.String()
}
