package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cocoonstack/epochfs/internal/logging"
	"github.com/cocoonstack/epochfs/internal/mounting"
)

// readTimeout is how long one-off commands try to fetch.
const readTimeout = 5 * time.Minute

// globals are the flags of every command.
type globals struct {
	cacheDir    string
	readTimeout time.Duration
	offline     bool
	hostsDir    string
	plainHTTP   bool
	platform    string
	concurrency int
	cacheSize   byteSize
	limitRate   byteSize
	json        bool
	quiet       bool
	verbose     bool
	logFormat   string
	logFile     string

	timeoutSet bool // whether --read-timeout was set
	logs       *logging.Log
	log        *slog.Logger // the log of logs, maybe with fields for every line
}

// newRootCmd returns the command line. finish must be called when a command
// has ended.
func newRootCmd() (root *cobra.Command, finish func()) {
	g := &globals{}
	root = &cobra.Command{
		Use:   "epochfs",
		Short: "Mount VM snapshots from an OCI registry",
		Long: `epochfs mounts VM snapshots from an OCI registry. A mount is ready at once; each
part of a file is fetched when it is first read, and then stored in a cache.

References are [host[:port]/]repo/path[:tag|@sha256:...]. Without a host,
OCI_REGISTRY is the registry: a host, or a host and the path before the name;
or else EPOCH_SERVER. Results go to stdout, everything else to stderr.`,
		Args:          cobra.ArbitraryArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q", args[0])
			}
			return cmd.Help()
		},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return g.prepare(cmd) },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	g.addFlags(root)
	root.AddCommand(
		newMountCmd(g), newUmountCmd(), newRestartCmd(g), newMaterializeCmd(g), newPushCmd(g), newConvertCmd(g), newRecordCmd(g),
		newInspectCmd(g), newLsCmd(g), newCatCmd(g), newCpCmd(g), newFsCmd(g), newDiffCmd(g), newDemoCmd(g), newStatusCmd(g), newVersionCmd(g),
		newCacheCmd(g), newDoctorCmd(g), newAutomapCmd(),
	)
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	refuseWrongArgsBelow(root)
	return root, func() {
		if g.logs != nil {
			g.logs.Flush()
		}
	}
}

func (g *globals) addFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&g.cacheDir, "cache-dir", "", "directory of the cache (default $"+mounting.CacheDirEnv+", /var/cache/epochfs for root, else the user's cache directory)")
	f.DurationVar(&g.readTimeout, "read-timeout", 0, "how long a fetch is tried, 0 for ever (default 0 for mount, else 5m)")
	f.BoolVar(&g.offline, "offline", false, "send no requests to registries")
	f.StringVar(&g.hostsDir, "hosts-dir", "", "directory of hosts.toml files with mirrors (default $"+mounting.HostsDirEnv+", then /etc/containerd/certs.d, /etc/docker/certs.d)")
	f.BoolVar(&g.plainHTTP, "plain-http", false, "allow plain HTTP to registries that are not on this machine")
	f.StringVar(&g.platform, "platform", "", "child of an image index to use, as os/arch (default linux/amd64)")
	f.IntVar(&g.concurrency, "concurrency", 0, "concurrent requests to the registry (default depends on the link)")
	f.Var(&g.cacheSize, "cache-size", "how much disk space the cache may use, such as 50GiB (default all but a tenth of its file system)")
	f.Var(&g.limitRate, "limit-rate", "fetch at most this many bytes per second, such as 100MB (default no limit)")
	f.BoolVar(&g.json, "json", false, "print results as JSON")
	f.BoolVar(&g.quiet, "quiet", false, "print no progress and no notes")
	f.BoolVar(&g.verbose, "verbose", false, "log what is done")
	f.StringVar(&g.logFormat, "log-format", "text", "format of log lines on stderr and in a file: text or json")
	f.StringVar(&g.logFile, "log-file", "", "append log lines to this file, instead of stderr or, for background mounts, the journal")
}

// refuseWrongArgsBelow makes a wrong number of arguments, or an unknown
// command, a usage error for all commands below parent.
func refuseWrongArgsBelow(parent *cobra.Command) {
	for _, cmd := range parent.Commands() {
		if !cmd.Runnable() { // cobra would print its help and report success
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
		if cmd.Name() == "help" {
			cmd.Args = knownCommand
		}
		refuseWrongArgs(cmd)
		refuseWrongArgsBelow(cmd)
	}
}

func refuseWrongArgs(cmd *cobra.Command) {
	check := cmd.Args
	if check == nil {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usagef("usage: %s", cmd.UseLine())
		}
		return nil
	}
}

// knownCommand returns an error unless the arguments are the path of a
// command.
func knownCommand(cmd *cobra.Command, args []string) error {
	_, rest, err := cmd.Root().Find(args)
	if err == nil && len(rest) > 0 {
		err = usagef("there is no command %q", rest[0])
	}
	return err
}

// prepare checks the global flags and opens the log.
func (g *globals) prepare(cmd *cobra.Command) error {
	g.timeoutSet = cmd.Flags().Changed("read-timeout")
	if g.readTimeout < 0 || g.concurrency < 0 {
		return usagef("--read-timeout and --concurrency cannot be negative")
	}
	if g.quiet && g.verbose {
		return usagef("--quiet and --verbose exclude each other")
	}
	if os, arch, ok := strings.Cut(g.platform, "/"); g.platform != "" && (!ok || os == "" || arch == "") {
		return usagef("--platform is os/arch, such as linux/arm64, not %q", g.platform)
	}
	if g.logFormat != "text" && g.logFormat != "json" {
		return usagef("--log-format is text or json, not %q", g.logFormat)
	}
	opts := logging.Options{JSON: g.logFormat == "json", File: g.logFile, Level: slog.LevelWarn}
	switch {
	case g.verbose:
		opts.Level = slog.LevelDebug
	case g.quiet:
		opts.Level = slog.LevelError
	}
	var err error
	if g.logs, err = logging.New(opts); err != nil {
		return cannotWrite(g.logFile, err)
	}
	g.log = g.logs.Logger
	return nil
}

// tardy is transport.Options.Tardy. Tests that count requests set it.
var tardy time.Duration

// config returns the configuration for mounting; timeout is the command's
// own default for --read-timeout.
func (g *globals) config(timeout time.Duration) (mounting.Config, error) {
	cfg := mounting.Config{
		Offline:     g.offline,
		PlainHTTP:   g.plainHTTP,
		Platform:    g.platform,
		Concurrency: g.concurrency,
		CacheSize:   int64(g.cacheSize),
		LimitRate:   int64(g.limitRate),
		ReadTimeout: timeout,
		UserAgent:   "epochfs/" + buildVersion(),
		Tardy:       tardy,
		Log:         g.log,
	}
	if g.timeoutSet {
		cfg.ReadTimeout = g.readTimeout
	}
	if g.hostsDir != "" {
		cfg.HostsDirs = []string{g.hostsDir}
	}
	cfg.FromEnvironment(os.Getenv)
	var err error
	if g.cacheDir != "" {
		// The process that serves a mount changes its directory.
		cfg.CacheDir, err = filepath.Abs(g.cacheDir)
	} else {
		cfg.CacheDir, err = mounting.DefaultCacheDir()
	}
	return cfg, err
}

// notEmpty refuses flags that were set to "", as by a script with an unset
// variable: that is not the same as leaving them out.
func notEmpty(f *pflag.FlagSet, names ...string) error {
	for _, name := range names {
		if f.Changed(name) && f.Lookup(name).Value.String() == "" {
			return usagef("--%s is empty", name)
		}
	}
	return nil
}
