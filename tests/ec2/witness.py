"""Looks at an EC2 by boto3, as somebody who knows nothing of pool.

    witness.py URL REGION list DEPLOYMENT      its instances that are not terminated, as JSON
    witness.py URL REGION all DEPLOYMENT       the terminated ones too
    witness.py URL REGION userdata ID          as JSON
    witness.py URL REGION terminate|stop ID…
    witness.py URL REGION network              two subnets in two zones, a security group, a profile
    witness.py URL REGION secrets PROXY        the secret keys that the proxy has seen, as JSON
    witness.py URL REGION tag ID KEY VALUE
    witness.py URL REGION untag ID KEY
    witness.py URL REGION many COUNT DEPLOYMENT   makes instances that are tagged as workers
"""

import base64
import json
import sys
import urllib.request

import boto3

url, region, what, *rest = sys.argv[1:]
ec2, iam = (boto3.client(service, region_name=region, endpoint_url=url, aws_access_key_id="AKIAWITNESS",
                         aws_secret_access_key="witness") for service in ("ec2", "iam"))


def instances(deployment):
    pages = ec2.get_paginator("describe_instances").paginate(
        Filters=[{"Name": "tag:pool.deployment", "Values": [deployment]}])
    for page in pages:
        for reservation in page["Reservations"]:
            yield from reservation["Instances"]


def shown(instance):
    found = {key: instance.get(key) for key in ("InstanceId", "ImageId", "InstanceType", "SubnetId", "KeyName",
                                                "PrivateIpAddress", "PublicIpAddress", "InstanceLifecycle")}
    found["State"] = instance["State"]["Name"]
    found["Zone"] = instance["Placement"]["AvailabilityZone"]
    found["Tags"] = {tag["Key"]: tag["Value"] for tag in instance.get("Tags", [])}
    found["SecurityGroups"] = [group["GroupId"] for group in instance.get("SecurityGroups", [])]
    found["HttpTokens"] = instance.get("MetadataOptions", {}).get("HttpTokens")
    found["Profile"] = instance.get("IamInstanceProfile", {}).get("Arn")
    return found


if what in ("list", "all"):
    found = [shown(instance) for instance in instances(rest[0])]
    if what == "list":
        found = [one for one in found if one["State"] != "terminated"]
    print(json.dumps(found))
elif what == "terminate":
    ec2.terminate_instances(InstanceIds=rest)
elif what == "stop":
    ec2.stop_instances(InstanceIds=rest)
elif what == "untag":
    ec2.delete_tags(Resources=[rest[0]], Tags=[{"Key": rest[1]}])
elif what == "userdata":
    found = ec2.describe_instance_attribute(InstanceId=rest[0], Attribute="userData")
    print(json.dumps(base64.b64decode(found["UserData"].get("Value", "")).decode()))
elif what == "tag":
    ec2.create_tags(Resources=[rest[0]], Tags=[{"Key": rest[1], "Value": rest[2]}])
elif what == "many":
    tags = {"pool.deployment": rest[1], "pool.provider": "ec2", "pool.worker": "many-0-1", "pool.attempt": "1",
            "pool.operation": "1", "pool.spec-hash": "v1:0"}
    # moto's pages are of reservations: of so many that a small page would not hold them.
    left = int(rest[0])
    while left:
        some = min(left, 8)
        left -= some
        ec2.run_instances(
            ImageId="ami-12c6146b", InstanceType="m7i.large", MinCount=some, MaxCount=some,
            TagSpecifications=[{"ResourceType": "instance",
                                "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}])
elif what == "secrets":
    with urllib.request.urlopen(f"{rest[0]}/-/secrets") as answer:
        print(answer.read().decode())
elif what == "network":
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    subnets = [ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.7.{n}.0/24", AvailabilityZone=f"{region}{zone}")
               for n, zone in enumerate("ab")]
    group = ec2.create_security_group(GroupName=f"pool-{vpc}", Description="tests", VpcId=vpc)["GroupId"]
    profile = iam.create_instance_profile(InstanceProfileName=f"pool-{vpc}")["InstanceProfile"]["Arn"]
    print(json.dumps({"profile": profile, "subnets": [subnet["Subnet"]["SubnetId"] for subnet in subnets], "group": group}))
else:
    sys.exit(__doc__)
