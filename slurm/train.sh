# What the scripts that train share; they source it. See their headers for what a user may expect.

fail() {
  echo "error: $*" >&2
  exit 2
}

# The value of an option in a command line, as `--name value` or `--name=value`; "" without it.
value_of() { # --name words...
  local name=$1 value=""
  shift
  while (($#)); do
    [[ $1 == "$name="* ]] && value=${1#*=}
    [[ $1 == "$name" ]] && value=${2-}
    shift
  done
  echo "$value"
}

# Train until the run is done or has been interrupted, and end this script as SLURM should see it.
#
# One process per GPU, or one per node without GPUs, is started.
train() { # run-folder next-task-goes-on script options...
  local run=$1 next=$2
  shift 2

  local processes=${SLURM_GPUS_ON_NODE:-1} gpus=${SLURM_GPUS-}
  [[ -z $gpus || ${gpus##*:} == $((processes * SLURM_JOB_NUM_NODES)) ]] ||
    fail "nodes with unlike numbers of GPUs; ask for them with --gpus-per-node"
  local cores=$((SLURM_CPUS_ON_NODE / processes))
  ((cores)) || fail "$SLURM_CPUS_ON_NODE cores per node for $processes GPUs;" \
    "ask for some per GPU, as with --cpus-per-gpu=8"
  # On GPUs the cores are there to read and decode; elsewhere the recipe says how many do.
  [[ -z ${SLURM_GPUS_ON_NODE-} || -n $(value_of --data.workers "$@") ]] ||
    set -- "$@" --data.workers "$((cores > 1 ? cores - 1 : 1))"
  supervise "$run" "$next" "$processes" "$cores" "$@" --resume auto
}

# Run Python under srun, and end this script as SLURM should see it: requeued if what ran has saved and
# is to go on.
#
# Nothing is between srun and Python: so signals reach it, and srun waits until it has saved.
supervise() { # run-folder-or-"" next-task-goes-on processes-per-node cores words-for-python...
  local run=$1 next=$2 processes=$3 cores=$4 id=$SLURM_JOB_ID python=.venv/bin/python
  shift 4
  # The number of an array's last task may be that of the whole array, which must not be requeued.
  [[ -z ${SLURM_ARRAY_TASK_ID-} ]] || id=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  [[ -x $python ]] || python=python3
  newest() { # checkpoint, or nothing
    [[ -n $run ]] || return 0
    { find "$run/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null || true; } | sort | tail -n 1
  }
  local before status=0 step state
  before=$(newest)
  unset SLURM_CPUS_PER_GPU # of the job; srun would count cores twice
  # No --kill-on-bad-exit: processes that have saved do not end in the same instant, and the first
  # would kill the others. A process that fails ends the others after --wait seconds.
  srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((processes * SLURM_JOB_NUM_NODES))" \
    --ntasks-per-node="$processes" --cpus-per-task="$cores" --kill-on-bad-exit=0 --wait=60 \
    "$python" "$@" &
  step=$!
  # SLURM signals the processes itself, or, if told so (--signal=B:USR2@180), only this script.
  trap 'kill -USR2 "$step" 2>/dev/null || true' TERM USR2
  while kill -0 "$step" 2>/dev/null; do wait "$step" || true; done # a signal interrupts wait
  wait "$step" || status=$?

  ((status)) || exit 0
  state=$(squeue --noheader --jobs="$id" --format=%T 2>/dev/null || true)
  if [[ $state != RUNNING ]]; then
    echo "SLURM ends this job and decides what becomes of it (${state:-gone})"
  elif ((status == 75 && next)); then
    echo "saved; the next task of the array goes on"
    exit 0
  elif ((status == 75)) || { ((status != 2 && !next)) && [[ $(newest) != "$before" ]]; }; then
    echo "exit status $status; requeued to go on${run:+ from $(newest)}"
    scontrol requeue "$id" || echo "it cannot be requeued; submit the same line again" >&2
  else
    echo "error: training failed with exit status $status; see above" >&2
  fi
  exit "$status"
}

# Train what an array's task is to: each recipe with each number of cases, if such are given, and each
# seed has a run folder of its own in OUTPUT.
grid() { # batch-script train-script cases(1,5,all or "") seeds recipes... options...
  local script=$1 train_script=$2 cases=$3 seeds=${4-}
  shift 3
  [[ $seeds =~ ^[1-9][0-9]*$ ]] || fail "$script takes a number of seeds, then recipes"
  shift
  local recipes=() names=() counts=() own=(config seed resume) recipe name count
  while (($#)) && [[ $1 != --* ]]; do
    recipes+=("$1")
    shift
  done
  ((${#recipes[@]})) || fail "no recipe is named; they come after the number of seeds"
  [[ -z $cases ]] || own+=(data.cases)
  for name in "${own[@]}"; do
    [[ -z $(value_of "--$name" "$@") ]] || fail "--$name is given to each run of a sweep by itself"
  done
  local output
  output=$(value_of --output "$@")
  [[ -n $output ]] || fail "$script needs --output, the folder of the runs' folders"
  for recipe in "${recipes[@]}"; do names+=("$(basename "$recipe" .yaml)"); done
  local twice
  twice=$(printf '%s\n' "${names[@]}" | sort | uniq -d | head -n 1)
  [[ -z $twice ]] || fail "two recipes are called $twice, so their runs would have one folder"
  IFS=, read -ra counts <<<"${cases:-all}"

  local total=$((seeds * ${#recipes[@]} * ${#counts[@]})) shape="${#recipes[@]} recipes with"
  [[ -z $cases ]] || shape+=" ${#counts[@]} numbers of cases and"
  [[ -n ${SLURM_ARRAY_TASK_ID-} ]] || fail "$script needs --array=0-$((total - 1))"
  ((SLURM_ARRAY_TASK_MAX < total)) || fail "$shape $seeds seeds are --array=0-$((total - 1))"

  local seed=$((SLURM_ARRAY_TASK_ID % seeds)) rest=$((SLURM_ARRAY_TASK_ID / seeds))
  count=${counts[rest % ${#counts[@]}]} recipe=$((rest / ${#counts[@]}))
  local run=$output/${names[recipe]}
  [[ -z $cases ]] || run+=-cases$count
  run+=-seed$seed
  [[ $count == all ]] || set -- "$@" --data.cases "$count"
  echo "run $((SLURM_ARRAY_TASK_ID + 1)) of $total: $run"
  train "$run" 0 "$train_script" --config "${recipes[recipe]}" "$@" --seed "$seed" --output "$run"
}
