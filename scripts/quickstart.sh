#!/usr/bin/env bash
# Three stages on real speech: data -> pretrain -> SFT -> DPO -> evaluate -> export -> one table and a page.
#   bash scripts/quickstart.sh            # real voice prompts, five languages (Debian packages, fetched without root)
#   bash scripts/quickstart.sh data=tts   # second choice, where apt-get is not available: synthesised speech
# Running it again resumes where it stopped and skips what is done. Everything goes to data/ and runs/quickstart/.
started=$(date +%s)
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

corpus=asterisk
for argument in "$@"; do
  case "$argument" in
    data=asterisk) corpus=asterisk ;;
    data=tts) corpus=tts ;;
    -h | --help) sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) stop "unknown argument '$argument'; known: data=asterisk (default), data=tts." ;;
  esac
done

RUN=runs/quickstart
STEPS=(data chat_data preference_data preference_test pretrain sft dpo
  evaluate_untrained evaluate_pretrain evaluate_sft evaluate_dpo export whisper_base report)
mkdir -p "$RUN/.steps" data
if [ -f "$RUN/.corpus" ] && [ "$(cat "$RUN/.corpus")" != "$corpus" ]; then
  stop "$RUN was made with data=$(cat "$RUN/.corpus"); move it away to run with data=$corpus."
fi
echo "$corpus" >"$RUN/.corpus"
# One process a core with one thread each does more than one process with all cores. Four bins make a step (see
# configs/experiment/quickstart), so one, two and four processes take the same steps.
cores=$(nproc)
processes=$((cores >= 4 ? 4 : cores))
[ "$processes" = 3 ] && processes=2
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores / processes))}" TRANSFORMERS_VERBOSITY=error PYTHONWARNINGS=ignore

step() { # step NAME COMMAND...: runs once; its wall seconds are kept
  local name=$1 number=0 begin
  shift
  while [ "${STEPS[$number]}" != "$name" ]; do number=$((number + 1)); done
  if [ -f "$RUN/.steps/$name" ]; then
    echo "== [$((number + 1))/${#STEPS[@]}] $name: done before ($(cat "$RUN/.steps/$name") s)"
    return
  fi
  echo "== [$((number + 1))/${#STEPS[@]}] $name"
  begin=$(date +%s.%N)
  "$@" || stop "step '$name' failed (above); the same command goes on from here once it is mended."
  printf '%.1f' "$(echo "$(date +%s.%N) $begin" | awk '{print $1 - $2}')" >"$RUN/.steps/$name"
}
beside() { # beside FUNCTION FUNCTION: the steps of both at the same time; what the first one says is shown at its end
  local log="$RUN/$1.log" first failed=0
  "$1" >"$log" 2>&1 &
  first=$!
  ("$2") || failed=1
  wait "$first" || failed=1
  cat "$log"
  [ "$failed" = 0 ] || exit 1
}
train() { # train STAGE SET
  python -m torch.distributed.run --standalone --nproc-per-node "$processes" "recipes/$1.py" \
    "experiment=quickstart/$1" "data.train=data/${corpus}_$2_train"
}
evaluate() { # evaluate STAGE FORM [more settings]
  local stage=$1 form=$2
  shift 2
  python recipes/evaluate.py experiment=quickstart/evaluate "evaluation.name=$stage" "evaluation.form=$form" \
    "evaluation.pretrain_set=data/${corpus}_pretrain_test" "evaluation.output=$RUN/evaluation/$stage" "$@"
}

prepare_chat() {
  step chat_data python -m data_prep.chat_from_transcripts --input "data/${corpus}_pretrain_train" --output data
  step preference_test python -m data_prep.preference_pairs --input "data/${corpus}_pretrain_test" --output data
}
prepare_preference() {
  step preference_data python -m data_prep.preference_pairs --input "data/${corpus}_pretrain_train" --output data
}
evaluate_and_export() {
  step evaluate_untrained evaluate untrained completion "model.start_from=$RUN/pretrain/initial"
  step evaluate_pretrain evaluate pretrain completion "model.start_from=$RUN/pretrain/final"
  step evaluate_sft evaluate sft chat "model.start_from=$RUN/sft/final"
  step evaluate_dpo evaluate dpo chat "model.start_from=$RUN/dpo/final" "evaluation.reference=$RUN/sft/final" \
    "evaluation.preference_set=data/${corpus}_preference_test"
  step export python recipes/export.py "export.stage=$RUN/dpo/final" "export.output=$RUN/export" \
    "export.verify_set=data/${corpus}_pretrain_test"
}
hear_whisper() { # it pads every clip to 30 s, so half of the clips cost as much as all of our evaluations
  step whisper_base nice python scripts/whisper_reference.py --every 2 --set "data/${corpus}_pretrain_test" \
    --output "$RUN/evaluation/whisper_base"
}

if [ "$corpus" = asterisk ]; then
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
    stop "apt-get and dpkg-deb are needed to fetch the voice prompts; without them run: bash scripts/quickstart.sh data=tts"
  # Sized for minutes: one clip in twenty is longer than 10 s and takes a quarter of the time; and a small model learns
  # to listen from transcripts, so not every possible translation is made.
  step data python -m data_prep.asterisk_prompts --output data --max-seconds 10 --translate-share 0.4
else
  step data python -m data_prep.tts --output data
fi
beside prepare_chat prepare_preference
step pretrain train pretrain pretrain
step sft train sft chat
step dpo train dpo preference
beside hear_whisper evaluate_and_export
step report python scripts/quickstart_report.py --run $RUN --corpus "$corpus"

python scripts/quickstart_report.py --run $RUN --corpus "$corpus" --show
echo "Wall time of this call: $(($(date +%s) - started)) s"
