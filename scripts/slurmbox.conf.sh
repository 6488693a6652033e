# The configuration files of a slurmbox; scripts/slurmbox sources this.
# Reads: box, kept and the options NODES, GPUS, CPUS, MEM, ACCOUNTING, LIMITS, MAX_ARRAY, STEPMGR,
# SLURMBOX_PORT, SLURMBOX_PREFIX; options_text.
# shellcheck shell=bash disable=SC2154

slurm_conf() {
  local stepmgr="" store="AccountingStorageType=accounting_storage/none"
  [[ $ACCOUNTING == 0 ]] || store="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((SLURMBOX_PORT + 1))
AccountingStoragePass=$box/run/munge.socket
AccountingStorageTRES=gres/gpu"
  ((!LIMITS)) || store+=$'\n'AccountingStorageEnforce=limits
  [[ $STEPMGR == 0 ]] || stepmgr="SlurmctldParameters=enable_stepmgr
PrologFlags=contain"
  cat <<CONF
ClusterName=slurmbox
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$((SLURMBOX_PORT + 2))
AuthInfo=socket=$box/run/munge.socket
StateSaveLocation=$box/state
SlurmdSpoolDir=$box/spool/%n
SlurmctldPidFile=$box/run/slurmctld.pid
SlurmdPidFile=$box/run/slurmd.%n.pid
SlurmctldLogFile=$box/log/slurmctld.log
SlurmdLogFile=$box/log/slurmd.%n.log
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/cgroup
JobAcctGatherFrequency=1
$store
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((MEM / CPUS))
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MaxArraySize=$MAX_ARRAY
MaxJobCount=20000
# Tests wait for these: schedule at once, forget an ended job after 30 s, miss a node after 10 s.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
MinJobAge=30
KillWait=3
SlurmdTimeout=10
ReturnToService=2
# The nodes together claim more CPUs and memory than the machine has.
SlurmdParameters=config_overrides
$stepmgr
$(nodes_conf)
CONF
}

nodes_conf() {
  local nodes="${SLURMBOX_PREFIX}[1-$NODES]" first=$((SLURMBOX_PORT + 11))
  cat <<CONF
NodeName=$nodes NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 \
Port=[$first-$((first + NODES - 1))] CPUs=$CPUS RealMemory=$MEM Gres=gpu:$GPUS State=UNKNOWN
PartitionName=gpu Nodes=$nodes Default=YES MaxTime=INFINITE PriorityTier=1 State=UP
PartitionName=urgent Nodes=$nodes MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
CONF
}

slurmdbd_conf() {
  cat <<CONF
AuthInfo=socket=$box/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((SLURMBOX_PORT + 1))
LogFile=$box/log/slurmdbd.log
PidFile=$box/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$SLURMBOX_PORT
StorageUser=slurm
StoragePass=slurmbox
StorageLoc=slurm_acct
CONF
}

configure() {
  local i
  # munged wants its socket's folder open to all and its key's folder closed.
  chmod 755 "$box/run" && chmod 700 "$box/munge"
  [[ -f $box/munge/key ]] || (umask 277 && head -c 1024 /dev/urandom >"$box/munge/key")
  # Slurm wants a device file for each GPU; the numbers of /dev/null, 1 and 3, do no harm.
  for ((i = 0; i < GPUS; i++)); do [[ -e $box/dev/gpu$i ]] || mknod "$box/dev/gpu$i" c 1 3; done
  echo "Name=gpu File=$box/dev/gpu[0-$((GPUS - 1))]" >"$box/etc/gres.conf"
  slurm_conf >"$box/etc/slurm.conf"
  printf '%s\n' CgroupPlugin=cgroup/v1 CgroupMountpoint=/sys/fs/cgroup \
    ConstrainRAMSpace=yes AllowedRAMSpace=100 >"$box/etc/cgroup.conf"
  (umask 177 && slurmdbd_conf >"$box/etc/slurmdbd.conf")
  options_text >"$kept"
}
