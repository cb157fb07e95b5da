package logfile

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"text/template"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
)

// Options configure a Log.
type Options struct {
	MaxSize  int64 // bytes; 0: the file is never set aside
	MaxFiles int   // at least 1, the one being written included
	Compress bool  // what is set aside
	Attrs    map[string]string

	NonBlocking bool  // a Ring stands before the log
	Buffer      int64 // its size in bytes
}

// ParseOptions reads the options of docker's json-file and local drivers, among
// them those that Attributes heeds. Errors are errdefs.ErrInvalidArgument.
func ParseOptions(driver string, config map[string]string) (Options, error) {
	o := Options{MaxFiles: 1}
	if driver == "local" {
		o = Options{MaxFiles: 5, MaxSize: 20 << 20, Compress: true}
	}
	if err := checkNames(driver, config); err != nil {
		return Options{}, err
	}
	var err error
	if err = o.parseMode(config); err != nil {
		return Options{}, err
	}
	if v, ok := config["max-size"]; ok {
		if o.MaxSize, err = units.FromHumanSize(v); err != nil {
			return Options{}, invalid("invalid value for max-size: %s: %v", v, err)
		}
		if o.MaxSize <= 0 {
			return Options{}, invalid("max-size must be a positive number")
		}
	}
	if v, ok := config["max-file"]; ok {
		if o.MaxFiles, err = strconv.Atoi(v); err != nil {
			return Options{}, invalid("invalid value for max-file: %s: %v", v, err)
		}
		if o.MaxFiles < 1 {
			return Options{}, invalid("max-file cannot be less than 1")
		}
	}
	if v, ok := config["compress"]; ok {
		if o.Compress, err = strconv.ParseBool(v); err != nil {
			return Options{}, invalid("invalid boolean value for compress: %v", err)
		}
	}
	switch {
	case !o.Compress:
	case driver == "local" && o.MaxFiles == 1:
		return Options{}, invalid("compression cannot be enabled when max file count is 1")
	case o.MaxFiles == 1 || o.MaxSize == 0:
		return Options{}, invalid("compress cannot be true when max-file is less than 2 or max-size is not set")
	}
	_, err = Attributes(config, Origin{})
	return o, err
}

func invalid(format string, args ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
}

// parseMode reads the options that say who waits when a log is slow: the container,
// or nobody.
func (o *Options) parseMode(config map[string]string) (err error) {
	switch config["mode"] {
	case "", "blocking":
	case "non-blocking":
		o.NonBlocking, o.Buffer = true, DefaultBuffer
	default:
		return invalid("logger: logging mode not supported: %s", config["mode"])
	}
	if v, ok := config["max-buffer-size"]; ok {
		if !o.NonBlocking {
			return invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		if o.Buffer, err = units.RAMInBytes(v); err != nil {
			return invalid("error parsing option max-buffer-size: %v", err)
		}
	}
	return nil
}

// checkNames refuses options that the driver does not have.
func checkNames(driver string, config map[string]string) error {
	for key := range config {
		switch key {
		case "max-size", "max-file", "compress", "labels", "labels-regex", "env", "env-regex", "tag", "mode", "max-buffer-size":
			continue
		}
		if driver == "local" {
			return invalid("unknown log opt '%s' for log driver local", key)
		}
		return invalid("unknown log opt '%s' for %s log driver", key, driver)
	}
	return nil
}

// Origin is whose log it is. Its fields and methods are what the option "tag", a
// text/template, may name.
type Origin struct {
	FullID, Name, ImageFullID, ImageName, Command string
	DaemonName                                    string

	Env    []string
	Labels map[string]string
}

// ID is the short form of the container's ID.
func (o Origin) ID() string { return o.FullID[:min(12, len(o.FullID))] }

// ImageID is the short form of the image's ID.
func (o Origin) ImageID() string { return o.ImageFullID[:min(12, len(o.ImageFullID))] }

// Attributes are what the options labels, labels-regex, env, env-regex and tag add
// to each entry; nil when that is nothing. Errors are errdefs.ErrInvalidArgument.
func Attributes(config map[string]string, o Origin) (map[string]string, error) {
	env := map[string]string{}
	for _, v := range o.Env {
		if name, value, ok := strings.Cut(v, "="); ok {
			env[name] = value
		}
	}
	attrs := map[string]string{}
	for _, from := range []struct {
		option string
		values map[string]string
	}{{"labels", o.Labels}, {"env", env}} {
		for name := range strings.SplitSeq(config[from.option], ",") {
			if v, ok := from.values[name]; ok && name != "" {
				attrs[name] = v
			}
		}
		expr := config[from.option+"-regex"]
		if expr == "" {
			continue
		}
		re, err := regexp.Compile(expr)
		if err != nil {
			return nil, invalid("invalid value for %s-regex: %v", from.option, err)
		}
		for name, v := range from.values {
			if re.MatchString(name) {
				attrs[name] = v
			}
		}
	}
	tag, err := o.tag(config["tag"])
	if err != nil {
		return nil, err
	}
	if tag != "" {
		attrs["tag"] = tag
	}
	if len(attrs) == 0 {
		return nil, nil
	}
	return attrs, nil
}

func (o Origin) tag(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	t, err := template.New("log-tag").Parse(text)
	if err != nil {
		return "", invalid("invalid value for tag: %v", err)
	}
	var b strings.Builder
	if err := t.Execute(&b, o); err != nil {
		return "", invalid("invalid value for tag: %v", err)
	}
	return b.String(), nil
}
