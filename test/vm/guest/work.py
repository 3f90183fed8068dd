# What the guest does: files are read, programs run, memory is allocated and
# changed, a log is written; once a turn, with a second's rest.
import hashlib, json, os, random, subprocess, time

pages = [os.urandom(4096) for _ in range(8000)]
turn = 0
while True:
    for directory, _, names in os.walk('/usr/lib/python3'):
        for name in names[:50]:
            try:
                open(os.path.join(directory, name), 'rb').read()
            except OSError:
                pass
    subprocess.run(['ps', 'aux'], stdout=subprocess.DEVNULL)
    subprocess.run(['perl', '-e', 'my %h; $h{$_}=$_ x 3 for 1..20000; print scalar keys %h'], stdout=subprocess.DEVNULL)
    squares = {str(k): k * k for k in range(50000)}
    with open('/var/log/work.log', 'a') as log:
        log.write(json.dumps({'i': turn, 'h': hashlib.sha256(str(squares).encode()).hexdigest()}) + '\n')
    for _ in range(200):
        pages[random.randrange(len(pages))] = os.urandom(4096)
    turn += 1
    print('LOOP', turn, flush=True)
    time.sleep(1)
